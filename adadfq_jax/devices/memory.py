"""How much memory a device has and a program asks for; and freed memory, kept between steps."""

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

import jax

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def peak_bytes(program: Any, device: jax.Device) -> int:
    """Returns the most memory in use on a device; on CPU, what a compiled program asks for."""
    measured = device.memory_stats()
    return measured["peak_bytes_in_use"] if measured else program_bytes(program)


def program_bytes(program: jax.stages.Compiled) -> int:
    """Returns the memory that a compiled program asks of each of its devices."""
    plan = program.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


def memory_bytes(device: jax.Device, sharing: int) -> int | None:
    """Returns a device's memory, None where it does not tell.

    Args:
      device: one of this process's.
      sharing: how many are in use; CPU devices share the machine's memory.
    """
    known = device.memory_stats() or {}
    if "bytes_limit" in known:
        return known["bytes_limit"]
    if device.platform != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # In a container, what it was given.
    with contextlib.suppress(OSError, ValueError):  # no such file; "max"
        machine = min(machine, int(_CONTAINER_LIMIT.read_text()))
    return machine // sharing


# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep() -> None:
    """Lets the C library keep freed memory for the next allocation, for this whole process.

    XLA's CPU backend allocates its buffers anew for every step, and glibc returns such large ones
    to the system at once: a step of ResNet-20, batch 16, then starts with 77 MB of fresh pages,
    whose faults are a sixth of its processor time. No size is excepted: a step of ResNet-18 at 224
    pixels frees 1.6 GB, and took a third longer while free memory beyond 1 GiB was returned. Call
    it before JAX starts its threads, which would get arenas of their own. Does nothing where the C
    library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in (
            (_ARENA_MAX, 1),
            (_MMAP_MAX, 0),
            (_TRIM_THRESHOLD, -1),
        ):
            mallopt(parameter, value)
