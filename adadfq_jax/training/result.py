"""What a run came to: the numbers of `result.json`, by name, and as a table for people."""

import dataclasses
from pathlib import Path
from typing import Any

from adadfq_jax.errors import ConfigError
from adadfq_jax.evaluation.accuracy import percent
from adadfq_jax.training.workdir import RESULT, read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to. Accuracies are fractions, None where there were no images to measure on.

    Attributes:
      teacher_top1, teacher_top5: of the teacher.
      calibrated_top1, calibrated_images: of the student whose ranges are calibrated and who has
        learned nothing, and on how many images.
      top1, top5: of the student after the last step.
      best_top1, best_step, best_images: of the best evaluation, chosen on these images.
      healthiest_top1, healthiest_images, healthiest_step: of the student of the highest health,
        chosen without data.
      health: of the student after the last step, see `evaluation/health.py`.
      agreement, calibrated_agreement: share of held-out generated images on which teacher and
        student name the same class, after the last step and before the first of play.
      range_change: how far the ranges moved in the last epoch of calibration, relative to their
        width; None where there was one epoch alone.
      steps: how many there were.
      weight_bits, activation_bits, overrides: of the student.
      seed: of the run.
      architecture, parameters, macs: of the network; macs of one image.
      step_bytes: of memory that a step asks of each device.
      evaluation_images: how many there were; None without.
      seconds: of wall time, compiling and measuring included.
      steps_per_second: over that time.
      devices, device_kind, jax_version: what it ran on.
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

    @property
    def on_devices(self) -> str:
        """How many devices of which kind."""
        return f"{self.devices} x {self.device_kind}"

    def to_text(self) -> str:
        """Returns a plain table."""
        bits = f"w{self.weight_bits}a{self.activation_bits}"
        if self.overrides:
            bits += f" ({', '.join(self.overrides)})"
        best = self._measured(self.best_top1, self.best_images)
        healthiest = self._measured(self.healthiest_top1, self.healthiest_images)
        if self.best_top1 is not None:
            best += f" (step {self.best_step}, chosen on these images)"
        healthiest += f" (step {self.healthiest_step}, chosen without data: --checkpoint=best)"
        calibrated = self._measured(self.calibrated_top1, self.calibrated_images)
        rows = [
            ("network", f"{self.architecture}, {bits}, seed {self.seed}"),
            ("teacher top-1", percent(self.teacher_top1)),
            ("calibrated only", calibrated),
            ("student top-1, last", percent(self.top1)),
            ("student top-1, best", best),
            ("healthiest student", healthiest),
            ("agreement, generated", percent(self.agreement)),
            ("steps", f"{self.steps} at {self.steps_per_second:.1f} per second"),
        ]
        return "\n".join(f"{name:<22}{value}" for name, value in rows)

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
    names = [field.name for field in dataclasses.fields(Result)]
    if missing := [name for name in names if name not in written]:
        raise ConfigError(
            f"{str(path)!r} is damaged, or of another version of adadfq: it has no "
            f"{', '.join(missing[:3])}."
        )
    return Result(**{name: written[name] for name in names})
