"""TPU slices by their public description, and devices that programs can be compiled for."""

import dataclasses
import importlib.util

import jax

from adadfq_jax.errors import ConfigError, install_command


@dataclasses.dataclass(frozen=True)
class _Chip:
    """A generation of TPU, from its public description.

    Attributes:
      memory: memory of a chip in bytes.
      shapes: shapes of the slices that there are.
    """

    memory: int
    shapes: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v4": _Chip(32 * 2**30, _CUBES),
    "v5e": _Chip(16 * 2**30, _FLAT),
    "v5p": _Chip(95 * 2**30, _CUBES),
    "v6e": _Chip(32 * 2**30, _FLAT),
}
TOPOLOGIES = tuple(f"{chip}:{shape}" for chip, kind in CHIPS.items() for shape in kind.shapes)


def require_compiler() -> None:
    """Makes sure that the TPU's compiler is installed.

    Raises:
      ConfigError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"compiling for a TPU needs its compiler: {install_command('tpu')} (no TPU needed)."
        )


def devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a slice that is not here; programs can only be compiled for them.

    Args:
      topology: a name in `TOPOLOGIES`.

    Raises:
      ConfigError: the installed compiler does not know the slice.
    """
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"this libtpu cannot compile for {topology}: {str(error).splitlines()[0]}"
        ) from error
