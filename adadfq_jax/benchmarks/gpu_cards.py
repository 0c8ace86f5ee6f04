"""NVIDIA cards by their public figures, and devices that programs can be compiled for without one.

The figures are those of the vendor's data sheets (without sparsity) and architecture papers: they
say what the compiler asks of a card, and what an estimate of a step's time is made from.
"""

import dataclasses
import importlib.util

import jax

from adadfq_jax.errors import ConfigError, install_command

# Seconds between the starts of two kernels in a row: 1.5 to 3 microseconds are usual.
LAUNCH = 2e-6

# JAX's packages for NVIDIA cards; each has a compiler that needs neither a card nor a driver.
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

# With nothing to time kernels on, XLA chooses them without.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0}


@dataclasses.dataclass(frozen=True)
class Card:
    """A card, from its public description.

    Attributes:
      name: as its driver says it.
      capability: its compute capability, (major, minor).
      multiprocessors: how many it has.
      clock: the highest of the multiprocessors, in GHz.
      memory: in bytes.
      bandwidth: of the memory, in bytes a second.
      cache: of the second level, in bytes.
      single_flops, half_flops: of the matrix units, in FLOP a second, in TensorFloat-32 (where XLA
        computes convolutions and products of float32) and in bfloat16.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float
    memory: int
    bandwidth: float
    cache: int
    single_flops: float
    half_flops: float


_GIB, _MIB = 2**30, 2**20
CARDS = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 80 * _GIB, 2.04e12, 40 * _MIB, 156e12, 312e12
    ),
    "b200": Card("NVIDIA B200", (10, 0), 148, 1.965, 180 * _GIB, 8e12, 126 * _MIB, 1.1e15, 2.25e15),
    "h100": Card(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 80 * _GIB, 3.35e12, 50 * _MIB, 495e12, 989e12
    ),
    "h200": Card("NVIDIA H200", (9, 0), 132, 1.98, 141 * 10**9, 4.8e12, 50 * _MIB, 495e12, 989e12),
    "l4": Card("NVIDIA L4", (8, 9), 58, 2.04, 24 * _GIB, 3e11, 48 * _MIB, 60e12, 121e12),
    "rtx4090": Card(
        "NVIDIA GeForce RTX 4090", (8, 9), 128, 2.52, 24 * _GIB, 1.008e12, 72 * _MIB, 83e12, 165e12
    ),
}

# Of a multiprocessor, by compute capability: float32 units, threads, bytes of shared memory.
_MULTIPROCESSORS = {
    (8, 0): (64, 2048, 164 * 2**10),
    (8, 9): (128, 1536, 100 * 2**10),
    (9, 0): (128, 2048, 228 * 2**10),
    (10, 0): (128, 2048, 228 * 2**10),
}

# Computers times cards in each; a card's name alone is one card.
_SERVERS = ("1x2", "1x4", "1x8", "2x8", "4x8", "8x8")
TOPOLOGIES = tuple(
    name for card in CARDS for name in (card, *(f"{card}:{servers}" for servers in _SERVERS))
)


def has_compiler() -> bool:
    """Returns whether a compiler for NVIDIA cards is installed."""
    return any(importlib.util.find_spec(name) for name in PLUGINS)


def require_compiler() -> None:
    """Makes sure that a compiler for NVIDIA cards is installed.

    Raises:
      ConfigError: none is; the message says how to install it.
    """
    if not has_compiler():
        raise ConfigError(
            f"compiling for a GPU needs JAX's CUDA plugin: {install_command('cuda')} (no GPU "
            "needed)."
        )


def devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a topology; programs can only be compiled for them.

    Args:
      topology: a name in `TOPOLOGIES`.

    Raises:
      ConfigError: the installed compiler does not know the card.
    """
    from jax.experimental import topologies

    card, _, servers = topology.partition(":")
    shape = f"1x{servers or '1x1'}"  # partitions, computers, cards
    try:
        found = topologies.get_topology_desc(
            shape, "cuda", topology=shape, target_config=target_config(CARDS[card])
        )
    except NotImplementedError as error:
        raise ConfigError(
            "JAX's CUDA plugin does not start here: with JAX_PLATFORMS=cpu it compiles without "
            "CUDA's libraries."
        ) from error
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"this CUDA plugin cannot compile for {topology}: {str(error).splitlines()[0]}"
        ) from error
    return list(found.devices)


def target_config(card: Card) -> str:
    """Describes a card to XLA's compiler: a `GpuTargetConfigProto` in its text form."""
    units, threads, shared = _MULTIPROCESSORS[card.capability]
    major, minor = card.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {card.multiprocessors}
  clock_rate_ghz: {card.clock}
  fpus_per_core: {units}
  threads_per_core_limit: {threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared - 1024}
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_memory_size: {card.memory}
  memory_bandwidth: {int(card.bandwidth)}
  l2_cache_size: {card.cache}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{card.name}"
"""
