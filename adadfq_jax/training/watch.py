"""Reads a run's metrics, logs them, and finds a run that diverges, drifts or stands still."""

import dataclasses
import math
import time
from typing import Any

import numpy as np

from adadfq_jax.devices import pmap
from adadfq_jax.errors import ConfigError, DivergedError
from adadfq_jax.evaluation.drift import find_drift
from adadfq_jax.game.optimizers import rate_field
from adadfq_jax.game.state import Phase
from adadfq_jax.training.metric_log import Log
from adadfq_jax.training.words import smallest_student_loss

# A gradient that is exactly 0 for so many steps in a row is no chance.
_STILL_STEPS = 20

# A run that is about to diverge shows first in L_BNS.
_BNS_ALARM_FACTOR, _BNS_ALARM_STEPS = 10.0, 200


@dataclasses.dataclass
class Record:
    """What a resumed run must know besides its state; saved in every checkpoint, as JSON.

    Attributes:
      seconds: wall time of the run so far, compiling and measuring included.
      calibrated: the evaluation before the first step of play.
      best: the evaluation of the highest top-1.
      healthiest: the evaluation of the highest health.
      played: [step, agreement] of each evaluation since the student first learned.
      widths: for each epoch of calibration, the mean width of the ranges, summed over its steps.
      bns_sum, bns_steps: sum of L_BNS over the steps of calibration, and their number.
      bns_high: steps in a row with an alarming L_BNS.
    """

    seconds: float = 0.0
    calibrated: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)
    healthiest: dict[str, Any] = dataclasses.field(default_factory=dict)
    played: list[list[float]] = dataclasses.field(default_factory=list)
    widths: list[float] = dataclasses.field(default_factory=list)
    bns_sum: float = 0.0
    bns_steps: int = 0
    bns_high: int = 0


class Watch:
    """Reads the steps' metrics one dispatch late, so that the devices never wait for the host."""

    def __init__(self, config, record: Record, log: Log | None, progress, step: int, began: float):
        self._config, self._record, self._log, self._progress = config, record, log, progress
        self._pending: tuple[int, Phase, Any] | None = None
        self._since_log: list[dict[str, float]] = []
        # Phases end here. A log line averages over one phase only, and none is left at the end.
        epochs = (config.calibration_epochs, config.warmup_epochs, config.epochs)
        self._ends = {epoch * config.steps_per_epoch for epoch in epochs}
        self._began, self._seconds_before = began, record.seconds
        self._still = 0
        self._smallest_l_q = smallest_student_loss(config)
        self._rate_from = (step, time.monotonic())

    def seconds(self) -> float:
        """Returns the run's wall time in seconds, that of earlier processes included."""
        return self._seconds_before + time.monotonic() - self._began

    def look(self, step: int, phase: Phase, metrics: Any) -> None:
        """Takes the metrics of a dispatch that began at `step`, and reads the previous ones."""
        self.catch_up()
        self._pending = (step, phase, metrics)

    def catch_up(self) -> None:
        """Reads the metrics that were taken last, if they are not read yet.

        Raises:
          DivergedError: a value is not finite.
          ConfigError: a gradient was exactly 0 for many steps.
        """
        if self._pending is None:
            return
        step, phase, metrics = self._pending
        self._pending = None
        series = {name: values.tolist() for name, values in pmap.fetch(metrics).items()}
        for offset in range(len(series["l_g"])):
            values = {name: series[name][offset] for name in series}
            self._check(step + offset, phase, values)
            self._since_log.append(values)
            done = step + offset + 1
            if done % self._config.log_every_steps == 0 or done in self._ends:
                self._write(done, phase)

    def show(self, step: int, phase: Phase, measured: dict[str, Any]) -> None:
        """Logs and shows the numbers of an evaluation after `step` steps, and warns of drift."""
        known = {name: value for name, value in measured.items() if value is not None}
        if self._log is not None:
            self._log.write({"step": step, "evaluation": True} | measured)
        drift = find_drift(self._record.played)
        self._progress.update(step, phase.value, known | {"drift": drift and drift.fall})
        if "top1" in known:
            text = f"student: top-1 {known['top1']:.2%} after step {step}"
        else:
            text = f"student: agrees with the teacher on {known['agreement']:.1%} after step {step}"
        self._progress.say(text)
        if drift is not None and drift.step == step:
            self._warn(step, drift.sentence(self._record.healthiest["step"]))

    def _warn(self, step: int, text: str) -> None:
        self._progress.say(f"warning: {text}")
        if self._log is not None:
            self._log.write({"step": step, "warning": text})

    def _check(self, step: int, phase: Phase, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                kept = " Earlier checkpoints stay." if self._log is not None else ""
                rate = rate_field(self._config.student)
                raise DivergedError(
                    f"the run diverged: {name} is {value} at step {step} ({phase.value}). In a "
                    f"new workdir, lower generator.learning_rate or {rate}, or calibrate longer "
                    f"(calibration_epochs).{kept}"
                )
        self._check_that_something_moves(step, phase, values)
        record = self._record
        if phase is Phase.CALIBRATE:
            record.bns_sum += values["l_bns"]
            record.bns_steps += 1
            if step % self._config.steps_per_epoch == 0:
                record.widths.append(0.0)
            record.widths[-1] += values["range_width"]
            return
        usual = record.bns_sum / max(record.bns_steps, 1)
        record.bns_high = record.bns_high + 1 if values["l_bns"] > _BNS_ALARM_FACTOR * usual else 0
        if record.bns_high == _BNS_ALARM_STEPS:
            self._warn(
                step,
                f"L_BNS has been above {_BNS_ALARM_FACTOR:.0f} times its mean in calibration "
                f"({usual:.3g}) for {_BNS_ALARM_STEPS} steps, at step {step}: the run may be "
                "about to diverge.",
            )

    def _check_that_something_moves(
        self, step: int, phase: Phase, values: dict[str, float]
    ) -> None:
        """Raises ConfigError where the gradient of who learns was exactly 0 for many steps."""
        player = "student" if phase is Phase.PLAY else "generator"
        self._still = self._still + 1 if values[f"{player}_gradient"] == 0 else 0
        if self._still == _STILL_STEPS:
            error = ConfigError(
                f"nothing is learned: the {player}'s gradient was exactly 0 in the {_STILL_STEPS} "
                f"steps up to step {step} ({phase.value}), as where teacher and student give all "
                "images the same logits; check the teacher's weights, mean and std."
            )
            error.shared = True  # every process has read the same metrics
            raise error

    def _write(self, done: int, phase: Phase) -> None:
        mean = {
            name: float(np.mean([values[name] for values in self._since_log]))
            for name in self._since_log[0]
        }
        self._since_log = []
        now = time.monotonic()
        step, then = self._rate_from
        rate, self._rate_from = (done - step) / (now - then), (done, now)
        if self._log is not None:
            self._log.write({"step": done, "phase": phase.value, "steps_per_second": rate} | mean)
        above = {"l_q": mean["l_q"] - self._smallest_l_q}
        self._progress.update(done, phase.value, mean | above)


def range_change(widths: list[float]) -> float | None:
    """Returns how far the ranges moved in the last epoch of calibration, relative to their width.

    The width is averaged over layers and steps, since the width of a single layer fluctuates from
    batch to batch by more than it drifts.

    Args:
      widths: mean width of the ranges, summed over the steps of each epoch.

    Returns:
      The relative change between the last two epochs; None where there are fewer.
    """
    return None if len(widths) < 2 else abs(widths[-1] / widths[-2] - 1)
