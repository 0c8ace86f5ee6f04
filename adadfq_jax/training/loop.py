"""A run's loop, from its newest checkpoint to its result."""

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
    note,
    pictured_epochs,
)
from adadfq_jax.training.metric_log import open_log
from adadfq_jax.training.progress import Progress
from adadfq_jax.training.student import student_of
from adadfq_jax.training.watch import Record, Watch, range_change
from adadfq_jax.training.workdir import RESULT, SAMPLES, SAMPLES_OVER_TIME, Workdir


def run(
    config: ml_collections.ConfigDict,
    game: Game,
    state: GameState,
    teacher: Teacher,
    datasets: tuple[Dataset | None, Dataset | None],
    devices: list[jax.Device],
    cost: Cost,
    workdir: str | Path | None,
    folder: Workdir | None,
    progress: Progress,
    should_stop: Callable[[], int | None],
    began: float,
) -> Student:
    """Plays a run from its newest checkpoint to its end, and writes its result."""
    # ---- Resume: the newest whole checkpoint, else the beginning ------------------------------
    between, dataset = datasets  # before the last step, and after it
    total = config.epochs * config.steps_per_epoch
    # Of several processes, the first alone has the workdir open: `folder`.
    with processes.together():
        checkpoints = None if folder is None else Checkpoints(folder.path)
        restored = (checkpoints and checkpoints.restore(state)) or (0, state, {})
    noted = processes.from_leader(lambda: json.dumps([restored[0], restored[2]]).encode())
    step, fields = json.loads(noted)
    record = Record(**fields)
    if step:
        state = processes.arrays_from_leader(lambda: restored[1], state)
        progress.say(f"resumed at step {step} from {workdir}")
        for line in () if folder is None else exports.exports_left_behind(folder.path, total):
            progress.say(line)
    log = None if folder is None else open_log(folder, step)

    teacher_accuracy = measure_accuracy(config, teacher, dataset, devices)
    if dataset is not None:
        progress.say(f"teacher: top-1 {teacher_accuracy['top1']:.2%} on {dataset.name}")

    # ---- Play ---------------------------------------------------------------------------------
    indices = pmap.device_indices(devices)
    variables = pmap.replicate(teacher.variables, devices)
    state = pmap.replicate(state, devices)
    watch = Watch(config, record, log, progress, step, began)

    def checkpoint():
        if checkpoints is not None:
            folder.check_owner()
            log.flush()  # what is saved is not played again, and would not be logged again
            record.seconds = watch.seconds()
            checkpoints.save(
                step,
                pmap.fetch(state),
                dataclasses.asdict(record),
                record.healthiest.get("step"),
            )

    saved = time.monotonic()
    compiled: dict[tuple[Phase, int], jax.stages.Compiled] = {}
    measured: dict[str, Any] = {}
    try:
        with progress:
            for count in programs.dispatches(step, total, config, devices[0].platform):
                phase = game.phase(step)
                if (phase, count) not in compiled:
                    compiled[phase, count] = programs.steps(
                        game, devices, phase, count, state, variables
                    )
                state, metrics = compiled[phase, count](state, variables, indices)
                watch.look(step, phase, metrics)
                step += count

                if step % config.steps_per_epoch == 0:
                    watch.catch_up()
                    epoch = step // config.steps_per_epoch
                    evaluated = evaluation_is_due(epoch, config)
                    pictured = folder is not None and epoch in pictured_epochs(config)
                    if evaluated or pictured:
                        host = pmap.fetch(state)
                    if evaluated:
                        images = dataset if step == total else between
                        measured = measure_student(config, game, host, teacher, images, devices)
                        note(record, step, epoch, config, measured)
                        watch.show(step, phase, measured)
                    if pictured:
                        picture = draw_picture(
                            game, host, teacher, PICTURED_PER_CLASS, PICTURED_CLASSES
                        )
                        folder.write_bytes(f"{SAMPLES_OVER_TIME}/{step:09}.png", picture)

                interval = config.checkpoint.every_seconds
                late = bool(interval) and time.monotonic() - saved > interval
                # All processes save, or end, after the same step.
                agreed = processes.union((should_stop() or 0) << 1 | late)
                stop, late = agreed >> 1, agreed & 1
                due = config.checkpoint.every_steps
                if (
                    stop
                    or step == total
                    or record.healthiest.get("step") == step
                    or (due and step // due > (step - count) // due)
                    or late
                ):
                    watch.catch_up()  # what has diverged is not saved
                    checkpoint()
                    saved = time.monotonic()
                if stop and step < total:
                    where = (
                        "without a workdir, so that nothing is kept"
                        if workdir is None
                        else f"with a checkpoint in {workdir}; run the same command to go on"
                    )
                    name = signal.Signals(stop).name
                    raise StoppedError(
                        f"stopped by {name} at step {step} of {total}, {where}.", stop
                    )
    finally:
        with contextlib.ExitStack() as closing:
            for opened in (log, checkpoints):  # checkpoints first, and whatever happens to one
                if opened is not None:
                    closing.callback(opened.close)

    # ---- Results ------------------------------------------------------------------------------
    host = pmap.fetch(state)
    if not measured:  # resumed from the checkpoint of the last step
        measured = measure_student(config, game, host, teacher, dataset, devices)
    seconds = watch.seconds()
    result = {
        "teacher_top1": teacher_accuracy["top1"],
        "teacher_top5": teacher_accuracy["top5"],
        "calibrated_top1": record.calibrated.get("top1"),
        "calibrated_images": record.calibrated.get("images"),
        "top1": measured["top1"],
        "top5": measured["top5"],
        "best_top1": record.best.get("top1"),
        "best_step": record.best.get("step"),
        "best_images": record.best.get("images"),
        "healthiest_top1": record.healthiest.get("top1"),
        "healthiest_images": record.healthiest.get("images"),
        "healthiest_step": record.healthiest.get("step"),
        "health": measured["health"],
        "agreement": measured["agreement"],
        "calibrated_agreement": record.calibrated.get("agreement"),
        "range_change": range_change(record.widths),
        "steps": step,
        "weight_bits": config.quant.weight_bits,
        "activation_bits": config.quant.activation_bits,
        "overrides": list(config.quant.overrides),
        "seed": config.seed,
        "architecture": teacher.architecture,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "step_bytes": cost.step_bytes,
        "evaluation_images": None if dataset is None else len(dataset),
        "seconds": seconds,
        "steps_per_second": step / seconds,
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "jax_version": jax.__version__,
    }
    if folder is not None:
        picture = draw_picture(game, host, teacher, SAMPLES_PER_CLASS, SAMPLED_CLASSES)
        folder.write_bytes(SAMPLES, picture)
        folder.write_text(RESULT, to_json(result))
    return student_of(game, host, teacher, result)
