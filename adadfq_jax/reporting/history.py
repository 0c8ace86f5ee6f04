"""Reads a run's log and pictures; damaged lines and pictures are skipped."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adadfq_jax.training.metric_log import read_log

_EVALUATED = (
    "top1",
    "top5",
    "loss",
    "agreement",
    "in_margin",
    "held_out_l_bns",
    "held_out_loss",
    "health",
)


@dataclasses.dataclass(frozen=True)
class History:
    """The log of a run.

    Attributes:
      curves: (steps, values) by metric, each (N,); NaN where a value is not finite.
      evaluations: the records of evaluations, in order; a number is None where it was not measured,
        or is not finite.
      not_finite: for each metric that was infinite or not a number, the first such step.
      seconds: wall time in seconds by phase, computed from the logged steps per second.
    """

    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    evaluations: list[dict[str, Any]]
    not_finite: Mapping[str, int]
    seconds: Mapping[str, float]

    def evaluated(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns a number of the evaluations as a curve (steps, values); NaN where it is None."""
        steps = [record["step"] for record in self.evaluations]
        return np.array(steps), np.array([record[name] for record in self.evaluations], float)


def read_history(workdir: Path) -> History:
    """Reads the log in a run's folder; without a log, the history is empty."""
    points: dict[str, list[tuple[int, float]]] = {}
    evaluations, not_finite, seconds, before = [], {}, {}, 0
    for record in read_log(workdir):
        step = record["step"]
        numbers = {
            name: float(value)
            for name, value in record.items()
            if type(value) in (int, float) and name != "step"
        }
        for name, value in numbers.items():
            if not math.isfinite(value):
                not_finite.setdefault(name, step)
        if record.get("evaluation"):
            finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
            measured = {name: finite.get(name) for name in _EVALUATED}
            measured["h_prime_histogram"] = record.get("h_prime_histogram")
            measured["class_top1"] = record.get("class_top1")
            evaluations.append({"step": step} | measured)
        elif isinstance(phase := record.get("phase"), str):
            rate = numbers.pop("steps_per_second", math.nan)
            if math.isfinite(rate) and rate > 0:
                seconds[phase] = seconds.get(phase, 0.0) + max(step - before, 0) / rate
            before = step
            for name, value in numbers.items():
                points.setdefault(name, []).append((step, value))
    curves = {}
    for name, pairs in points.items():
        steps, values = np.array(pairs, float).T
        curves[name] = steps, np.where(np.isfinite(values), values, np.nan)
    return History(curves, evaluations, not_finite, seconds)


def read_pictures(folder: Path) -> list[tuple[int, bytes]]:
    """Reads the pictures that a run drew during training: (step, PNG) in order, damaged ones not.

    Args:
      folder: the folder of pictures, each of which is named by its step.
    """
    pictures = []
    for file in sorted(folder.glob("*.png")):
        png = file.read_bytes()
        with contextlib.suppress(OSError, ValueError):  # damaged; or not named by a step
            Image.open(io.BytesIO(png)).load()
            pictures.append((int(file.stem), png))
    return pictures
