"""Reads a run and measures its student: all that the report of a run describes."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.config.identity import read_back
from adadfq_jax.evaluation import health
from adadfq_jax.evaluation.statistics import check_statistics
from adadfq_jax.game.optimizers import rate_field
from adadfq_jax.models.network import Student, Teacher
from adadfq_jax.reporting import findings, history, layer_errors
from adadfq_jax.reporting.run_figures import Schedule
from adadfq_jax.training.held_out import generate, scoring_batch_size
from adadfq_jax.training.result import Result, read_result
from adadfq_jax.training.student import load_state, student_of
from adadfq_jax.training.workdir import CONFIG, DIVERGED, read_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportedRun:
    """A run, and what the report measures of it.

    Attributes:
      workdir: the run's folder.
      config: content of `config.json`.
      result: the run's result; None where it is not finished.
      logged: the run's log.
      taken: pictures that the run drew during training, (step, PNG).
      teacher, student: the networks of the newest checkpoint.
      step: step of that checkpoint.
      images, labels: held-out images of the run's generator, and their labels.
      seen: outputs of both networks for these images.
      weights, activations: errors of the student's quantizers.
    """

    workdir: Path
    config: dict[str, Any]
    result: Result | None
    logged: history.History
    taken: Sequence[tuple[int, bytes]]
    teacher: Teacher
    student: Student
    step: int
    images: np.ndarray
    labels: np.ndarray
    seen: health.Answers
    weights: list[layer_errors.QuantizedWeight]
    activations: list[layer_errors.QuantizedActivation]

    @property
    def schedule(self) -> Schedule:
        """The steps at which the phases end."""
        epoch = self.config["steps_per_epoch"]
        return Schedule(
            calibrated=self.config["calibration_epochs"] * epoch,
            warm=self.config["warmup_epochs"] * epoch,
            total=self.config["epochs"] * epoch,
        )

    @property
    def margin(self) -> tuple[float | None, float | None]:
        """The boundaries lambda_l and lambda_u of the margin; None for a method without one."""
        return self.config["game"].get("lambda_l"), self.config["game"].get("lambda_u")


def read_run(
    workdir: Path, logged: history.History, taken: Sequence[tuple[int, bytes]]
) -> ReportedRun:
    """Reads a run, and measures its student on held-out generated images.

    Args:
      workdir: the run's folder.
      logged: the run's log.
      taken: pictures that the run drew during training, (step, PNG).

    Raises:
      CheckpointError: there is no run, or no checkpoint that can be read.
    """
    game, state, teacher, step = load_state(workdir)
    config = read_json(workdir / CONFIG)
    result = read_result(workdir)
    student = student_of(game, state, teacher, result)
    # In the batches of the run's evaluations, on which the images, H' and L_BNS depend.
    at_a_time = scoring_batch_size(teacher.image_size)
    images, labels = generate(game, state, config["evaluation"]["generated_images"])
    return ReportedRun(
        workdir=workdir,
        config=config,
        result=result,
        logged=logged,
        taken=taken,
        teacher=teacher,
        student=student,
        step=step,
        images=images,
        labels=labels,
        seen=health.score(teacher, student, images, labels, config["batch_size"], at_a_time),
        weights=layer_errors.measure_weights(student),
        activations=layer_errors.measure_activations(student, images),
    )


def facts_of(run: ReportedRun) -> findings.Facts:
    """Returns the numbers for the findings, from the log where an unfinished run has no result."""
    logged, seen, config, result = run.logged, run.seen, run.config, run.result
    ended = read_json(run.workdir / DIVERGED)
    # After a damaged checkpoint the student is of an earlier step than the end of the log.
    evaluations = [record for record in logged.evaluations if record["step"] <= run.step]
    calibrated = next((one for one in evaluations if one["step"] == run.schedule.warm), {})
    last = evaluations[-1] if evaluations else {}
    best = max(
        (one for one in evaluations if one["top1"] is not None),
        key=lambda one: one["top1"],
        default={},
    )
    healthiest = max(
        (one for one in evaluations if one["health"] is not None),
        key=lambda one: one["health"],
        default={},
    )
    played = run.step > run.schedule.warm
    full = read_back(config)
    adam = full.student.optimizer == "adam"
    return findings.Facts(
        bits=f"w{config['quant']['weight_bits']}a{config['quant']['activation_bits']}",
        steps=run.step,
        total_steps=run.schedule.total,
        diverged=ended and ended["message"],
        not_finite=logged.not_finite,
        calibration_epochs=config["calibration_epochs"],
        warmup_epochs=config["warmup_epochs"],
        epochs=config["epochs"],
        student_milestones=() if adam else full.student.milestones,
        student_rate=rate_field(full.student),
        clips_on_purpose=full.quant.learned_ranges or full.quant.ranges != "minmax",
        range_change=result and result.range_change,
        lambda_l=run.margin[0],
        lambda_u=run.margin[1],
        h_prime=seen.h_prime.tolist(),
        agreement=seen.agreement,
        calibrated_agreement=calibrated.get("agreement") if played else None,
        played=[
            (one["step"], one["agreement"])
            for one in evaluations
            if one["step"] > run.schedule.warm and one["agreement"] is not None
        ],
        teacher_top1=result and result.teacher_top1,
        calibrated_top1=calibrated.get("top1") if played else None,
        top1=last.get("top1"),
        best_top1=best.get("top1"),
        best_step=best.get("step"),
        health=seen.health,
        healthiest=healthiest.get("health"),
        healthiest_step=healthiest.get("step"),
        healthiest_top1=healthiest.get("top1"),
        statistics=check_statistics(run.teacher).distance,
        weights=run.weights,
        activations=run.activations,
    )
