"""The result of a run: the numbers of `result.json` by name, and as a table for people."""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adadfq_jax.errors import ConfigError
from adadfq_jax.evaluation.accuracy import percent
from adadfq_jax.evaluation.usual import what_is_usual
from adadfq_jax.models.display import not_data_free
from adadfq_jax.quantization.bits import overrides_in_words
from adadfq_jax.training.workdir import RESULT, read_json

_WIDTH = 100  # of a line, in characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The numbers of a run. Accuracies are fractions, and None where there were no images.

    Attributes:
      teacher_top1, teacher_top5: accuracy of the teacher.
      calibrated_top1, calibrated_images: top-1 of the calibrated student before training, and the
        number of images that it was measured on.
      top1, top5: accuracy of the student after the last step.
      best_top1, best_step, best_images: the evaluation of the highest top-1, which was chosen on
        the images that it is measured on.
      healthiest_top1, healthiest_images, healthiest_step: the evaluation of the student of the
        highest health, which was chosen without data.
      health: health of the student after the last step, see `evaluation/health.py`.
      agreement, calibrated_agreement: share of held-out generated images that teacher and student
        give the same class, after the last step and before the first step of play.
      range_change: how far the ranges moved in the last epoch of calibration, relative to their
        width; None where calibration had one epoch.
      steps: steps taken.
      weight_bits, activation_bits, overrides: bit-widths of the student.
      seed: seed of the run.
      architecture, parameters, macs: name and size of the network; macs are for one image.
      step_bytes: bytes of memory that a step needs on each device.
      evaluation_images: number of evaluation images of the last step; None without.
      seconds: wall time in seconds, compiling and measuring included.
      steps_per_second: steps over that time.
      devices, device_kind, jax_version: number and kind of devices, version of JAX.
      class_names: names of the classes, where the evaluation images have some.
      given_images: number of images of a user that the student learned from; 0: it is data-free.
    """

    teacher_top1: float | None
    teacher_top5: float | None
    calibrated_top1: float | None
    calibrated_images: int | None
    top1: float | None
    top5: float | None
    best_top1: float | None
    best_step: int | None
    best_images: int | None
    healthiest_top1: float | None
    healthiest_images: int | None
    healthiest_step: int | None
    health: float
    agreement: float
    calibrated_agreement: float | None
    range_change: float | None
    steps: int
    weight_bits: int
    activation_bits: int
    overrides: list[str]
    seed: int
    architecture: str
    parameters: int
    macs: int
    step_bytes: int
    evaluation_images: int | None
    seconds: float
    steps_per_second: float
    devices: int
    device_kind: str
    jax_version: str
    class_names: list[str] | None = None
    given_images: int = 0

    @property
    def on_devices(self) -> str:
        """Number and kind of the devices, such as "1 x cpu"."""
        return f"{self.devices} x {self.device_kind}"

    def headline(self) -> str:
        """Returns the one number that says most, in words."""
        if self.top1 is None:
            return f"agreement {percent(self.agreement)} on generated images"
        return f"top-1 {percent(self.top1)} (teacher {percent(self.teacher_top1)})"

    def rows(self) -> list[tuple[str, str]]:
        """Returns the lines of the table, (name, value): what was measured first."""
        bits = f"w{self.weight_bits}a{self.activation_bits}"
        if self.overrides:
            bits += f" ({overrides_in_words(self.overrides)})"
        chosen = f"step {self.healthiest_step}, chosen without data: --checkpoint=best"
        agreement = f"{percent(self.agreement)} of generated images get the teacher's class"
        health = f"{self.health:.3f} of 1, a score without data, to compare students of one teacher"
        others = [
            ("agreement", agreement),
            ("health", health),
            ("network", f"{self.architecture}, {bits}, seed {self.seed}"),
            ("steps", f"{self.steps} at {self.steps_per_second:.1f} per second, all included"),
        ]
        if self.given_images:
            others.insert(0, ("data", not_data_free(self.given_images)))
        if self.top1 is None:
            others.insert(2, ("healthiest student", chosen))
            others.insert(3, ("top-1", "not measured, as there were no test images"))
            return others
        measured = [
            ("student top-1, last", percent(self.top1)),
            ("teacher top-1", percent(self.teacher_top1)),
        ]
        if self.calibrated_top1 is not None:
            before = self._measured(self.calibrated_top1, self.calibrated_images)
            measured.append(("calibrated only", f"{before}, before the student learned"))
        if self.best_top1 is not None:
            best = self._measured(self.best_top1, self.best_images)
            best += f" (step {self.best_step}, chosen on these images)"
            measured.append(("student top-1, best", best))
        healthiest = self._measured(self.healthiest_top1, self.healthiest_images)
        return [*measured, ("healthiest student", f"{healthiest} ({chosen})"), *others]

    def to_text(self, others: Sequence[tuple[str, str]] = ()) -> str:
        """Returns a plain table, and what is usual at these bit-widths.

        Args:
          others: further lines of the table, (name, value).
        """
        bits = f"w{self.weight_bits}a{self.activation_bits}"
        usual = textwrap.wrap(what_is_usual(bits, self.agreement), _WIDTH)
        rows = [f"{name:<22}{value}" for name, value in (*self.rows(), *others)]
        return "\n".join([*rows, "", *usual])

    def _measured(self, top1: float | None, images: int | None) -> str:
        fewer = images is not None and images != self.evaluation_images
        return percent(top1) + (f", on {images:,} images" if fewer else "")


def read_result(folder: Path) -> Result | None:
    """Reads the result of a run's folder; None where the run has not ended.

    Raises:
      ConfigError: the file is damaged, or of another version of adadfq.
    """
    written = read_json(folder / RESULT)
    return None if written is None else _of_json(written, folder / RESULT)


def _of_json(written: dict[str, Any], path: Path) -> Result:
    fields = dataclasses.fields(Result)
    names = [field.name for field in fields if field.name in written]
    required = [field.name for field in fields if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in written]:
        raise ConfigError(
            f"{str(path)!r} is damaged, or of another version of adadfq: it has no "
            f"{', '.join(missing[:3])}."
        )
    return Result(**{name: written[name] for name in names})
