"""What the machine has and can do, and what a compiled program asks of it."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

_MATRIX_SIDE = {"cpu": 1024}
_MATRIX_SIDE_ELSEWHERE = 8192

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def seconds(play: Callable[[], Any], steps: int) -> list[float]:
    """Times a function, until its results are there, after one call that is not counted."""
    jax.block_until_ready(play())
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        jax.block_until_ready(play())
        times.append(time.perf_counter() - began)
    return times


def seconds_in_flight(start: Callable[[], Any], steps: int) -> list[float]:
    """Times steps that are called, as in a run, while the one before is computed.

    Args:
      start: starts a step and returns results of it, which may not be there yet.
      steps: how many to time. One before them is not counted, nor is the one that is computed
        while the last one's end is waited for; none is left in flight.

    Returns:
      Of each, the seconds from the end of the one before to its own.
    """
    jax.block_until_ready(start())
    times, began = [], time.perf_counter()
    ahead = start()
    for _ in range(steps):
        before, ahead = ahead, start()
        jax.block_until_ready(before)
        ended = time.perf_counter()
        times.append(ended - began)
        began = ended
    jax.block_until_ready(ahead)
    return times


def matrix_product(devices: list[jax.Device]) -> float:
    """Measures the FLOP/s of devices in a large float32 matrix product, as a ceiling."""
    platform = devices[0].platform
    side = _MATRIX_SIDE.get(platform, _MATRIX_SIDE_ELSEWHERE)
    matrix = jax.device_put(jnp.ones((side, side)), devices[0])
    product = jax.jit(jnp.matmul)
    fastest = min(seconds(lambda: product(matrix, matrix), 10))
    # A product on one CPU device has all cores already.
    return 2 * side**3 / fastest * (1 if platform == "cpu" else len(devices))


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
