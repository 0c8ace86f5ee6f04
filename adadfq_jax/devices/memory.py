"""Memory of devices and of compiled programs; and how freed memory is kept between steps."""

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Any

import jax

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def peak_bytes(program: Any, device: jax.Device) -> int:
    """Returns the peak of memory in use on a device, in bytes.

    Args:
      program: the compiled program that runs there; its memory is returned for a CPU device,
        which does not measure the peak.
      device: the device.
    """
    measured = device.memory_stats()
    return measured["peak_bytes_in_use"] if measured else program_bytes(program)


def program_bytes(program: jax.stages.Compiled) -> int:
    """Returns the memory that a compiled program needs on each of its devices, in bytes."""
    plan = program.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )


def memory_bytes(device: jax.Device, sharing: int) -> int | None:
    """Returns a device's memory in bytes; None where it is not known.

    Args:
      device: a device of this process.
      sharing: number of devices in use, since CPU devices share the machine's memory.
    """
    known = device.memory_stats() or {}
    if "bytes_limit" in known:
        return known["bytes_limit"]
    if device.platform != "cpu" or "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # In a container, its limit.
    with contextlib.suppress(OSError, ValueError):  # no such file; "max"
        machine = min(machine, int(_CONTAINER_LIMIT.read_text()))
    return machine // sharing


# Parameters of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8

# glibc's own number of mapped blocks, and the largest threshold that it takes.
_USUAL_MAPPED, _LARGE = 65536, 32 * 2**20

# The kept memory of a run, in units of what its programs need at a time: what is freed and
# allocated again is seldom of one size, and lies in pieces. Seen: 3.9, and growing, in a game of
# EfficientNet-Lite0 at 224 pixels.
_KEPT = 6


def keep() -> None:
    """Lets the C library keep freed memory for the next allocation, in the whole process.

    XLA's CPU backend allocates new buffers for every step, and glibc returns large freed ones to
    the system at once. A step of ResNet-20, batch 16, then starts with 77 MB of fresh pages, whose
    faults take a sixth of its processor time. Memory of any size is kept, since a step of ResNet-18
    at 224 pixels frees 1.6 GB, and took a third longer while free memory beyond 1 GiB was returned.
    Call this before JAX starts its threads, because each of them would get a separate arena. Does
    nothing where the C library is not glibc.
    """
    _set({_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: -1})


def keep_if_it_fits(needed: int, available: int) -> None:
    """Ends what `keep` began, for blocks of 32 MiB and more, where kept memory could run out.

    Args:
      needed: what programs need at a time, in bytes.
      available: what there is for them, in bytes.
    """
    if _KEPT * needed > available:
        _set({_MMAP_MAX: _USUAL_MAPPED, _MMAP_THRESHOLD: _LARGE})
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _set(parameters: dict[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in parameters.items():
            mallopt(parameter, value)
