"""Timing of compiled programs, and the speed of a matrix product to compare them with."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_MATRIX_SIDE = {"cpu": 1024}

_MATRIX_SIDE_ELSEWHERE = 8192


def seconds(play: Callable[[], Any], steps: int) -> list[float]:
    """Times calls of a function until their results are ready.

    Args:
      play: the function, which returns arrays.
      steps: number of calls to time; one more call before them is not timed.

    Returns:
      Seconds of each call.
    """
    jax.block_until_ready(play())
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        jax.block_until_ready(play())
        times.append(time.perf_counter() - began)
    return times


def seconds_in_flight(start: Callable[[], Any], steps: int) -> list[float]:
    """Times steps that are dispatched, as in a run, while the step before is computed.

    Args:
      start: dispatches a step and returns its results, which need not be ready.
      steps: number of steps to time. One step before them, and one after them that keeps the device
        busy, are not timed.

    Returns:
      For each step, the seconds from the end of the step before to its end.
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
    """Measures the FLOP/s of devices in a large float32 matrix product, as an upper bound."""
    platform = devices[0].platform
    side = _MATRIX_SIDE.get(platform, _MATRIX_SIDE_ELSEWHERE)
    matrix = jax.device_put(jnp.ones((side, side)), devices[0])
    product = jax.jit(jnp.matmul)
    fastest = min(seconds(lambda: product(matrix, matrix), 10))
    # A product on one CPU device uses all cores already, so that devices do not multiply.
    return 2 * side**3 / fastest * (1 if platform == "cpu" else len(devices))
