"""The format `stablehlo`: a compiled-anywhere program with the integer weights inside.

A zip file of `model.stablehlo`, which `jax.export.deserialize` reads, and `adadfq.json`. The
program maps normalised float32 images (N, H, W, channels), N symbolic, to logits (N, classes) on
CPU, CUDA and TPU.
Weights of up to 4 bits are int4 constants. jax.export promises that a program can be run for six
months after it was written, and for programs older or newer than that promises nothing.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from adadfq_jax.errors import ExportError
from adadfq_jax.exporting.contract import describe_input
from adadfq_jax.exporting.description import STABLEHLO_ENTRY, refuse_newer
from adadfq_jax.exporting.quantized import QuantizedNetwork
from adadfq_jax.models.layers import input_shape
from adadfq_jax.models.network import flatten, unflatten

PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT = 1
LAYOUT = "NHWC"
_PROGRAM = "model.stablehlo"
_MOST_BITS_OF_INT4 = 4


def to_bytes(network: QuantizedNetwork, about: dict[str, Any]) -> bytes:
    """Returns a file's content.

    Args:
      network: the student.
      about: what the description should say besides the input space.
    """
    simulated = network.network
    rest = {
        name: array
        for name, array in flatten(simulated.variables).items()
        if not name.endswith("/kernel")
    }
    kernels = {
        name: (
            jnp.asarray(part.codes, jnp.uint4 if part.bits <= _MOST_BITS_OF_INT4 else jnp.uint8),
            part.zero_point,
            part.step,
        )
        for name, part in network.weights.items()
    }

    def classify(images):
        decoded = {
            f"params/{name}/kernel": (codes.astype(jnp.float32) + zero_point) * step
            for name, (codes, zero_point, step) in kernels.items()
        }
        return simulated.module.apply(unflatten(rest | decoded), images)

    side = network.image_size
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *input_shape(network.module, side)), jnp.float32)
    program = jax.export.export(jax.jit(classify), platforms=PLATFORMS)(images).serialize()
    described = {
        "format": FORMAT,
        "architecture": network.architecture,
        "classes": network.classes,
        "image_size": side,
        "mean": list(network.mean),
        "std": list(network.std),
        **network.preparation.described(),
        "about": about,
        **describe_input(network, LAYOUT),
    }
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(_entry(_PROGRAM), bytes(program))
        file.writestr(_entry(STABLEHLO_ENTRY), json.dumps(described, sort_keys=True))
    return content.getvalue()


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980, whatever the clock says
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def read(path: Path) -> tuple[dict[str, Any], jax.export.Exported]:
    """Reads a file of `to_bytes`.

    Returns:
      (its description, the program).

    Raises:
      ExportError: the file is damaged, of another kind, or of a newer format.
    """
    name = repr(str(path))
    try:
        with zipfile.ZipFile(path) as file:  # checks a sum of every entry
            described = json.loads(file.read(STABLEHLO_ENTRY))
            newer = described["format"] > FORMAT
            if not newer:
                return described, jax.export.deserialize(bytearray(file.read(_PROGRAM)))
    except Exception as error:  # a damaged zip file, or program, fails in many ways
        raise ExportError(
            f"{name} is not a readable StableHLO export: it is damaged, or written by a version of "
            "JAX too far from this one."
        ) from error
    refuse_newer(name, described["format"], FORMAT)
