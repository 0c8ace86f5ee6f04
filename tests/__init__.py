"""Tests, in folders that mirror the package. How they compile is set here, before JAX is there."""

import importlib.metadata
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

# torch's threads wait for each other by spinning: on busy cores that is 20 times slower.
os.environ["OMP_NUM_THREADS"] = "1"

# For the processes that tests start, too: what one of them has compiled, no other compiles again,
# if it has as many devices.
os.environ["JAX_NUM_CPU_DEVICES"] = "4"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(tempfile.gettempdir(), "adadfq_jax_tests"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Steps are played a few times, so LLVM does not optimise them. XLA's own passes, which tests look
# at, are the usual ones.
_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Fusions without MLIR, with which a step takes four times as long to compile. Later versions
    # have no other way, and end where they meet a flag that they do not know.
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
# Once: a flag that is repeated is another key in the cache, and children import this, too.
if _FLAGS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
