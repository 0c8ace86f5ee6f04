"""The training loop: from the newest checkpoint over steps, evaluations and saves to the result."""

import contextlib
import dataclasses
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from adadfq_jax.config.identity import to_json
from adadfq_jax.data.dataset import Dataset
from adadfq_jax.devices import pmap, processes
from adadfq_jax.errors import StoppedError
from adadfq_jax.game import programs
from adadfq_jax.game.state import GameState, Phase
from adadfq_jax.game.step import Game
from adadfq_jax.models.network import Student, Teacher
from adadfq_jax.training import exports
from adadfq_jax.training.checkpoint import Checkpoints
from adadfq_jax.training.cost import Cost
from adadfq_jax.training.measure import (
    PICTURED_CLASSES,
    PICTURED_PER_CLASS,
    SAMPLED_CLASSES,
    SAMPLES_PER_CLASS,
    draw_picture,
    evaluation_is_due,
    measure_accuracy,
    measure_student,
    note_evaluation,
    pictured_epochs,
)
from adadfq_jax.training.metric_log import open_log
from adadfq_jax.training.progress import Progress
from adadfq_jax.training.result import Result
from adadfq_jax.training.student import student_of
from adadfq_jax.training.watch import Record, Watch, range_change
from adadfq_jax.training.words import legend, phase_ends, phase_line
from adadfq_jax.training.workdir import RESULT, SAMPLES, SAMPLES_OVER_TIME, Workdir


@dataclasses.dataclass
class Run:
    """One run: its arguments, its state and how far it is.

    Attributes:
      config: the whole configuration, from `resolve.resolve`.
      game: the step and its rules.
      teacher: P.
      dataset: evaluation images for the last step; None without.
      subset: images for the evaluations before, which may be fewer; None without.
      devices: where the steps run.
      state: the arrays that steps change; on the devices while the loop runs.
      workdir: the run's folder as the user wrote it; None for a run that writes nothing.
      progress: the progress display.
      should_stop: returns a signal's number once the run has to stop with a checkpoint, else None.
      began: `time.monotonic()` when the command began.
      images: images of a user for the student, uint8 (M, H, W, channels); None without.
      folder: the workdir, owned; None without one and, of several processes, in all but the first.
      cost: what a step needs of the devices.
      step: steps taken so far.
    """

    config: ml_collections.ConfigDict
    game: Game
    teacher: Teacher
    dataset: Dataset | None
    subset: Dataset | None
    devices: list[jax.Device]
    state: GameState
    workdir: str | Path | None
    progress: Progress
    should_stop: Callable[[], int | None]
    began: float
    images: np.ndarray | None = None
    # Set once the folder is taken.
    folder: Workdir | None = None
    cost: Cost | None = None
    step: int = 0

    def __post_init__(self):
        """Sets what the loop keeps to itself to that of a run without steps."""
        self._total = self.config.epochs * self.config.steps_per_epoch
        self._record = Record()
        self._measured: dict[str, Any] = {}  # numbers of the last evaluation
        self._checkpoints: Checkpoints | None = None

    def play(self) -> Student:
        """Trains to the last step and writes the result.

        Returns:
          The student after the last step.

        Raises:
          DivergedError, StoppedError, CheckpointError, StorageError: as `quantize`.
        """
        # ---- Resume: the newest whole checkpoint, else the beginning --------------------------
        # Only the first of several processes has the folder.
        with processes.sharing_errors():
            self._checkpoints = None if self.folder is None else Checkpoints(self.folder.path)
            restored = self._checkpoints and self._checkpoints.restore(self.state)
        self._resume(restored or (0, self.state, {}))
        log = None if self.folder is None else open_log(self.folder, self.step)
        with self.progress.busy("measuring the teacher"):
            accuracy = measure_accuracy(self.config, self.teacher, self.dataset, self.devices)
        if self.dataset is not None:
            self.progress.say(f"teacher: top-1 {accuracy['top1']:.2%} on {self.dataset.name}")

        # ---- Train ----------------------------------------------------------------------------
        self._watch = Watch(self.config, self._record, log, self.progress, self.step, self.began)
        self._log = log
        try:
            self._play()
        finally:
            with contextlib.ExitStack() as closing:
                # Callbacks run last to first: checkpoints close first, and the log even if that
                # fails.
                for opened in (log, self._checkpoints):
                    if opened is not None:
                        closing.callback(opened.close)

        # ---- Result ---------------------------------------------------------------------------
        self.state = pmap.fetch(self.state)
        if not self._measured:  # resumed from the checkpoint of the last step
            self._measured = self._measure_student(self.state)
        result = self._result(accuracy)
        if self.folder is not None:
            self.folder.write_bytes(
                SAMPLES, self._picture(self.state, SAMPLES_PER_CLASS, SAMPLED_CLASSES)
            )
            self.folder.write_text(RESULT, to_json(dataclasses.asdict(result)))
        return student_of(self.game, self.state, self.teacher, result)

    def _resume(self, restored: tuple[int, GameState, dict[str, Any]]) -> None:
        """Continues from a step, a state and a record; every process takes the first one's."""
        noted = processes.from_leader(lambda: json.dumps([restored[0], restored[2]]).encode())
        self.step, fields = json.loads(noted)
        self._record = Record(**fields)
        if not self.step:
            return
        self.state = processes.arrays_from_leader(lambda: restored[1], self.state)
        self.progress.say(f"resumed at step {self.step} from {self.workdir}")
        if self.folder is not None:
            for line in exports.exports_left_behind(self.folder.path, self._total):
                self.progress.say(line)

    def _play(self) -> None:
        indices = pmap.device_indices(self.devices)
        variables = pmap.replicate(self.teacher.variables, self.devices)
        given = [] if self.images is None else [pmap.replicate(self.images, self.devices)]
        self.state = pmap.replicate(self.state, self.devices)
        self._saved = time.monotonic()
        pieces = programs.dispatches(self.step, self._total, self.config, self.devices[0].platform)
        self.progress.say(legend(self.config))
        ends = dict(phase_ends(self.config))
        names, known = list(ends), None
        for count in pieces:
            phase = self.game.phase(self.step)
            if phase is not known:
                self.progress.say(phase_line(phase, ends[phase.value]))
                known = phase
                # The steps of the last phase are compiled already, as the first program.
                if phase.value != names[-1]:
                    number = f"{names.index(phase.value) + 2} of {len(names)}"
                    with self.progress.busy(
                        f"compiling program {number}, the steps of {phase.value}",
                        self.cost.compile_seconds,
                        told=True,
                    ):
                        programs.steps(self.game, self.devices, phase, count, self.state, variables)
            program = programs.steps(self.game, self.devices, phase, count, self.state, variables)
            self.state, metrics = program(self.state, variables, indices, *given)
            self._watch.look(self.step, phase, metrics)
            self.step += count
            self.progress.advance(self.step, phase.value)
            if self.step % self.config.steps_per_epoch == 0:
                self._end_epoch(phase)
            self._save_or_stop(count)

    def _end_epoch(self, phase: Phase) -> None:
        """Evaluates the student and draws a picture, where they are due after this epoch."""
        self._watch.catch_up()
        epoch = self.step // self.config.steps_per_epoch
        evaluated = evaluation_is_due(epoch, self.config)
        pictured = self.folder is not None and epoch in pictured_epochs(self.config)
        if not (evaluated or pictured):
            return
        host = pmap.fetch(self.state)
        if evaluated:
            with self.progress.busy("measuring the student"):
                self._measured = self._measure_student(host)
            note_evaluation(self._record, self.step, epoch, self.config, self._measured)
            self._watch.show(self.step, phase, self._measured)
        if pictured:
            picture = self._picture(host, PICTURED_PER_CLASS, PICTURED_CLASSES)
            self.folder.write_bytes(f"{SAMPLES_OVER_TIME}/{self.step:09}.png", picture)

    def _save_or_stop(self, count: int) -> None:
        """Saves a checkpoint if one is due after `count` steps, and stops if a signal asked for it.

        Raises:
          StoppedError: a signal asked for it.
        """
        interval, due = self.config.checkpoint.every_seconds, self.config.checkpoint.every_steps
        late = bool(interval) and time.monotonic() - self._saved > interval
        # All processes must save, or stop, after the same step. Several processes wait here until
        # their devices are done.
        agreed = processes.union((self.should_stop() or 0) << 1 | late)
        stop, late = agreed >> 1, agreed & 1
        if (
            stop
            or late
            or self.step == self._total
            or self._record.healthiest.get("step") == self.step
            or (due and self.step // due > (self.step - count) // due)
        ):
            self._watch.catch_up()  # raises if a step diverged, so that its state is not saved
            self._save()
            self._saved = time.monotonic()
        if stop and self.step < self._total:
            where = (
                "without a workdir, so that nothing is kept"
                if self.workdir is None
                else f"with a checkpoint in {self.workdir}; run the same command to go on"
            )
            name = signal.Signals(stop).name
            raise StoppedError(
                f"stopped by {name} at step {self.step} of {self._total}, {where}.", stop
            )

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        self.folder.check_owner()
        self._log.flush()  # a resumed run does not repeat these steps, so nor would their log lines
        self._record.seconds = self._watch.seconds()
        self._checkpoints.save(
            self.step,
            pmap.fetch(self.state),
            dataclasses.asdict(self._record),
            self._record.healthiest.get("step"),
        )

    def _measure_student(self, host: GameState) -> dict[str, Any]:
        images = self.dataset if self.step == self._total else self.subset
        return measure_student(self.config, self.game, host, self.teacher, images, self.devices)

    def _picture(self, host: GameState, per_class: int, classes: int) -> bytes:
        return draw_picture(self.game, host, self.teacher, per_class, classes)

    def _result(self, teacher_accuracy: dict[str, Any]) -> Result:
        record, config, seconds = self._record, self.config, self._watch.seconds()
        names = self.dataset and self.dataset.class_names
        return Result(
            teacher_top1=teacher_accuracy["top1"],
            teacher_top5=teacher_accuracy["top5"],
            calibrated_top1=record.calibrated.get("top1"),
            calibrated_images=record.calibrated.get("images"),
            top1=self._measured["top1"],
            top5=self._measured["top5"],
            best_top1=record.best.get("top1"),
            best_step=record.best.get("step"),
            best_images=record.best.get("images"),
            healthiest_top1=record.healthiest.get("top1"),
            healthiest_images=record.healthiest.get("images"),
            healthiest_step=record.healthiest.get("step"),
            health=self._measured["health"],
            agreement=self._measured["agreement"],
            calibrated_agreement=record.calibrated.get("agreement"),
            range_change=range_change(record.widths),
            steps=self.step,
            weight_bits=config.quant.weight_bits,
            activation_bits=config.quant.activation_bits,
            overrides=list(config.quant.overrides),
            seed=config.seed,
            architecture=self.teacher.architecture,
            parameters=self.cost.parameters,
            macs=self.cost.macs,
            step_bytes=self.cost.step_bytes,
            evaluation_images=None if self.dataset is None else len(self.dataset),
            seconds=seconds,
            steps_per_second=self.step / seconds,
            devices=len(self.devices),
            device_kind=self.devices[0].device_kind,
            jax_version=jax.__version__,
            class_names=names and list(names),
            given_images=config.samples.images_count,
        )
