"""Images a second of models that take turns, so that a machine that slows down slows them all."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# What integer kernels are chosen by, as Linux calls it.
_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp")


def images_per_second(
    models: Mapping[str, Callable[[np.ndarray], Any]],
    shape: Sequence[int],
    batch_sizes: Sequence[int] = (1, 32),
    *,
    calls: int = 10,
    rounds: int = 5,
) -> dict[int, dict[str, list[float]]]:
    """Times models in turns.

    Args:
      models: by name, what maps images, float32 (B, channels, H, W), to logits.
      shape: of one image, (channels, H, W).
      batch_sizes: images of one call.
      calls: calls of one turn; one more before them is not timed.
      rounds: number of turns of each.

    Returns:
      By batch size and model, the images a second of each round.
    """
    found: dict[int, dict[str, list[float]]] = {}
    random = np.random.default_rng(0)
    for count in batch_sizes:
        images = random.standard_normal((count, *shape), np.float32)
        found[count] = {name: [] for name in models}
        for _ in range(rounds):
            for name, model in models.items():
                model(images)
                began = time.perf_counter()
                for _ in range(calls):
                    model(images)
                seconds = time.perf_counter() - began
                found[count][name].append(count * calls / seconds)
    return found


def ratio(speeds: Sequence[float], others: Sequence[float]) -> float:
    """Returns how many times as fast a model is as another one, the median over the rounds."""
    return statistics.median(a / b for a, b in zip(speeds, others, strict=True))


def processor() -> dict[str, Any]:
    """Returns the processor's name, its flags of integer kernels where known, and the load."""
    name, flags = platform.processor() or platform.machine(), []
    described = Path("/proc/cpuinfo")
    if described.is_file():
        lines = dict(
            map(str.strip, line.split(":", 1))
            for line in described.read_text().splitlines()
            if ":" in line
        )
        name = lines.get("model name", name)
        present = (lines.get("flags") or lines.get("Features", "")).split()
        flags = [flag for flag in _FLAGS if flag in present]
    return {"processor": name, "flags": flags, "load": os.getloadavg()[0]}
