"""What the machine has and can do, and what a compiled program asks of it."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_MATRIX_SIDE = {"cpu": 1024}

_MATRIX_SIDE_ELSEWHERE = 8192


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
