"""What the machine has, and what it can do."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_MATRIX_SIDE = {"cpu": 1024}
_MATRIX_SIDE_ELSEWHERE = 8192


def seconds(play: Callable[[], Any], steps: int) -> list[float]:
    """Times a function `steps` times, after one call that is not counted."""
    play()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        play()
        times.append(time.perf_counter() - began)
    return times


def matrix_product(devices: list[jax.Device]) -> float:
    """Measures the FLOP/s of devices in a large float32 matrix product, as a ceiling."""
    platform = devices[0].platform
    side = _MATRIX_SIDE.get(platform, _MATRIX_SIDE_ELSEWHERE)
    matrix = jax.device_put(jnp.ones((side, side)), devices[0])
    product = jax.jit(jnp.matmul)
    fastest = min(seconds(lambda: product(matrix, matrix).block_until_ready(), 10))
    # A product on one CPU device has all cores already.
    return 2 * side**3 / fastest * (1 if platform == "cpu" else len(devices))


def peak_bytes(program: Any, device: jax.Device) -> int:
    """Returns the most memory in use on a device; on CPU, what a compiled program asks for."""
    measured = device.memory_stats()
    if measured:
        return measured["peak_bytes_in_use"]
    plan = program.memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
    )
