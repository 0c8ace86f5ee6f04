"""One run, from a configuration to a measured student."""

import contextlib
import dataclasses
import errno
import json
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from adadfq_jax import health, parallel, processes, programs, recipes, samples
from adadfq_jax.checkpoint import Checkpoints
from adadfq_jax.config import export_formats, to_json, validate
from adadfq_jax.data import Dataset, check_fits, load_dataset
from adadfq_jax.errors import ConfigError, DivergedError, StoppedError, TeacherError
from adadfq_jax.evaluation import evaluate, percent
from adadfq_jax.exporting import kept, require
from adadfq_jax.game import Game, GameState, Phase
from adadfq_jax.metric_log import Log, open_log
from adadfq_jax.optimizers import rate_field
from adadfq_jax.progress import Progress
from adadfq_jax.statistics_check import check_statistics
from adadfq_jax.storage import is_remote, locate, translated
from adadfq_jax.student import (
    Student,
    generate,
    load_student,
    most_at_once,
    shown_together,
    student_of,
)
from adadfq_jax.teachers import Teacher, save_teacher, teacher_of
from adadfq_jax.workdir import (
    RESULT,
    SAMPLES,
    SAMPLES_OVER_TIME,
    TEACHER,
    Workdir,
    check_run,
)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Steps in a row in which nothing moves: by chance, not one.
_STILL_STEPS = 20

# When the game runs away, L_BNS rises before anything else shows it.
_BNS_ALARM_FACTOR, _BNS_ALARM_STEPS = 10.0, 200

# The picture at the end, and smaller ones on the way, at so many moments of play.
_SAMPLES_PER_CLASS, _SAMPLED_CLASSES = 10, 100
_PICTURES_OF_PLAY, _PICTURED_PER_CLASS, _PICTURED_CLASSES = 4, 2, 16


@dataclasses.dataclass
class _Record:
    """What a run knows besides its state; travels with every checkpoint, as JSON."""

    seconds: float = 0.0  # wall time of the run so far: compiling and measuring included
    calibrated: dict[str, Any] = dataclasses.field(default_factory=dict)
    best: dict[str, Any] = dataclasses.field(default_factory=dict)  # by top-1
    healthiest: dict[str, Any] = dataclasses.field(default_factory=dict)  # without data
    widths: list[float] = dataclasses.field(default_factory=list)  # of ranges, summed by epoch
    bns_sum: float = 0.0
    bns_steps: int = 0
    bns_high: int = 0  # steps in a row


@translated("the run in Cloud Storage fails")
def quantize(
    config: ml_collections.ConfigDict,
    teacher: Teacher | None = None,
    workdir: str | Path | None = None,
    *,
    should_stop: Callable[[], int | None] = lambda: None,
    show_progress: bool = True,
) -> Student:
    """Plays a game: quantizes a teacher without its data.

    A workdir that holds a checkpoint of the same run is resumed, one that holds the finished run
    is read. Where several processes play (`processes.start`), all call this alike, and the workdir
    lies on a disk that they share, or in Cloud Storage.

    Args:
      config: of `default_config` or a file in `configs/`.
      teacher: a teacher in memory; by default the one at `config.teacher.path`.
      workdir: where configuration, metrics, checkpoints, pictures and result go, on a disk or
        `gs://BUCKET/FOLDER`; without it, nothing is written.
      should_stop: asked after every dispatch; a signal's number ends the run with a checkpoint.
      show_progress: whether to show a progress bar on stderr.

    Returns:
      The student as it is after the last step.

    Raises:
      ConfigError, TeacherError, DataError: something given cannot be used; nothing was changed.
      CheckpointError: no checkpoint of the run can be read.
      DivergedError: a loss or gradient is not finite; in a workdir the last good checkpoint stays.
      StoppedError: `should_stop` said so; in a workdir a checkpoint was written.
      StorageError: a workdir in Cloud Storage is not reached; its checkpoints stay.
    """
    began = time.monotonic()
    # ---- What was given, checked before anything compiles -------------------------------------
    with processes.together():
        config = config.copy_and_resolve_references()
        validate(config)
        devices = parallel.choose_devices(config.devices, config.batch_size)
        if not isinstance(teacher, Teacher | None):
            raise TeacherError(f"the teacher must be one of load_teacher, not {teacher!r:.60}.")
        teacher = teacher or teacher_of(config)
        config = resolve(config, teacher)
        dataset = load_dataset(config.data.source, config.data.path, config.data.labels)
        if dataset is not None:
            check_fits(dataset, teacher)
        subset = config.evaluation.subset
        between = dataset.stratified(subset) if dataset is not None and subset else dataset
        game = Game.create(config, teacher.module, teacher.image_size)
        state = game.init(config, teacher.variables)
        for name in export_formats(config):
            if workdir is None:
                raise ConfigError("export needs a workdir: that is where the files go.")
            require(name)
    processes.check_equal("configuration", to_json(config))
    processes.check_equal("number of evaluation images", str(dataset and len(dataset)))

    # ---- The workdir: ours alone, and of this run ---------------------------------------------
    total = config.epochs * config.steps_per_epoch
    progress = Progress(total, show_progress and processes.leads())
    folder = None
    try:
        with processes.together():
            if workdir is not None and processes.leads():
                # Before the folder is taken, so that nothing is left where it is refused.
                if not is_remote(locate(workdir)):
                    check_run(locate(workdir), config)
                folder = Workdir(workdir)
                check_run(folder.path, config)
                kept.check(folder.path, config)
            finished = 0 if folder is None else folder.finished_steps()
        finished = processes.union(finished)
        if finished >= total:
            student = load_student(workdir)
            if student.result:
                progress.say(
                    f"{workdir}: the run is already complete, with {finished} steps; "
                    "`adadfq evaluate --workdir` measures it on other images."
                )
                with processes.together():
                    _export(student, folder, config, progress)
                return student
            progress.say(f"{workdir}: its last steps are lost, and are played again")
        with processes.together():
            cost = programs.foresee(game, config, state, teacher, devices)
            progress.say(cost.to_text())
            progress.say(f"teacher: {check_statistics(teacher).to_text()}")
            if folder is not None:
                folder.claim(config)
                _keep_teacher(folder, teacher)
        with translated(f"{workdir} fails"), _telling_of_a_full_disk(workdir):
            student = _run(
                config,
                game,
                state,
                teacher,
                (between, dataset),
                devices,
                cost,
                workdir,
                folder,
                progress,
                should_stop,
                began,
            )
            with processes.together():
                _export(student, folder, config, progress)
        return student
    finally:
        if folder is not None:
            folder.close()


@contextlib.contextmanager
def _telling_of_a_full_disk(workdir: str | Path | None) -> Iterator[None]:
    """Turns what the system says of a file that cannot be written into one sentence."""
    try:
        yield
    except OSError as error:
        if workdir is None or error.errno not in _NO_ROOM:
            raise
        raise ConfigError(
            f"workdir {str(workdir)!r} cannot be written ({error.strerror}); once there is room, "
            "the same command goes on from the newest checkpoint, or begins anew where there is "
            "none."
        ) from error


def _run(
    config: ml_collections.ConfigDict,
    game: Game,
    state: GameState,
    teacher: Teacher,
    datasets: tuple[Dataset | None, Dataset | None],
    devices: list[jax.Device],
    cost: programs.Cost,
    workdir: str | Path | None,
    folder: Workdir | None,
    progress: Progress,
    should_stop: Callable[[], int | None],
    began: float,
) -> Student:
    # ---- Resume: the newest whole checkpoint, else the beginning ------------------------------
    between, dataset = datasets  # before the last step, and after it
    total = config.epochs * config.steps_per_epoch
    # Of several processes, the first alone has the workdir open: `folder`.
    with processes.together():
        checkpoints = None if folder is None else Checkpoints(folder.path)
        restored = (checkpoints and checkpoints.restore(state)) or (0, state, {})
    noted = processes.from_leader(lambda: json.dumps([restored[0], restored[2]]).encode())
    step, fields = json.loads(noted)
    record = _Record(**fields)
    if step:
        state = processes.arrays_from_leader(lambda: restored[1], state)
        progress.say(f"resumed at step {step} from {workdir}")
        for line in () if folder is None else kept.left_behind(folder.path, total):
            progress.say(line)
    log = None if folder is None else open_log(folder, step)

    teacher_accuracy = _accuracy(config, teacher, dataset, devices)
    if dataset is not None:
        progress.say(f"teacher: top-1 {teacher_accuracy['top1']:.2%} on {dataset.name}")

    # ---- Play ---------------------------------------------------------------------------------
    indices = parallel.device_indices(devices)
    variables = parallel.replicate(teacher.variables, devices)
    state = parallel.replicate(state, devices)
    watch = _Watch(config, record, log, progress, step, began)

    def checkpoint():
        if checkpoints is not None:
            folder.check_owner()
            log.flush()  # what is saved is not played again, and would not be logged again
            record.seconds = watch.seconds()
            checkpoints.save(
                step,
                parallel.fetch(state),
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
                    evaluated = _evaluation_is_due(epoch, config)
                    pictured = folder is not None and epoch in _pictured_epochs(config)
                    if evaluated or pictured:
                        host = parallel.fetch(state)
                    if evaluated:
                        images = dataset if step == total else between
                        measured = _measure(config, game, host, teacher, images, devices)
                        _note(record, step, epoch, config, measured)
                        watch.show(step, phase, measured)
                    if pictured:
                        picture = _picture(
                            game, host, teacher, _PICTURED_PER_CLASS, _PICTURED_CLASSES
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
    host = parallel.fetch(state)
    if not measured:  # resumed from the checkpoint of the last step
        measured = _measure(config, game, host, teacher, dataset, devices)
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
        "range_change": _range_change(record.widths),
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
        picture = _picture(game, host, teacher, _SAMPLES_PER_CLASS, _SAMPLED_CLASSES)
        folder.write_bytes(SAMPLES, picture)
        folder.write_text(RESULT, to_json(result))
    return student_of(game, host, teacher, result)


def _export(student: Student, folder: Workdir | None, config, progress) -> None:
    """Leaves a finished run's student in the formats asked for, and no other one unsaid."""
    if folder is not None:
        kept.update(student, folder, config, progress.say, warnings.warn)


# ---- Before the game ------------------------------------------------------------------------


def resolve(config: ml_collections.ConfigDict, teacher: Teacher) -> ml_collections.ConfigDict:
    """Returns a run's whole configuration: as given, with all that follows from its teacher.

    Raises:
      ConfigError: a field cannot be used, or contradicts the teacher.
    """
    config = config.copy_and_resolve_references()
    validate(config)
    _take_over(config, teacher)
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    validate(config)
    return config


def _take_over(config: ml_collections.ConfigDict, teacher: Teacher) -> None:
    """Writes into a configuration what its teacher is.

    Raises:
      ConfigError: the configuration states something else.
    """
    for section, name, true in (
        ("teacher", "architecture", teacher.architecture),
        ("teacher", "image_size", teacher.image_size),
        ("teacher", "classes", teacher.classes),
        ("teacher", "digest", teacher.digest),
        ("data", "mean", tuple(teacher.mean)),
        ("data", "std", tuple(teacher.std)),
    ):
        stated = config[section][name]
        if stated and stated != true:
            raise ConfigError(f"{section}.{name} says {stated}, but the teacher has {true}.")
        config[section][name] = true


def _keep_teacher(folder: Workdir, teacher: Teacher) -> None:
    """Leaves the teacher beside the run, so that its workdir is all that a student needs."""
    target = folder.path / TEACHER
    if not target.exists():
        save_teacher(teacher, target)


# ---- During it --------------------------------------------------------------------------------


class _Watch:
    """Reads the steps' metrics, one dispatch late so that the device never waits for it."""

    def __init__(self, config, record: _Record, log: Log | None, progress, step: int, began: float):
        self._config, self._record, self._log, self._progress = config, record, log, progress
        self._pending: tuple[int, Phase, Any] | None = None
        self._since_log: list[dict[str, float]] = []
        # A line of the log is of one phase, and the last steps have one too.
        epochs = (config.calibration_epochs, config.warmup_epochs, config.epochs)
        self._ends = {epoch * config.steps_per_epoch for epoch in epochs}
        self._began, self._seconds_before = began, record.seconds
        self._still = 0
        self._rate_from = (step, time.monotonic())
        self._rate = 0.0

    def seconds(self) -> float:
        """Seconds of wall time, earlier processes included."""
        return self._seconds_before + time.monotonic() - self._began

    def look(self, step: int, phase: Phase, metrics: Any) -> None:
        """Takes the metrics of a dispatch that began at `step`; reads those of the one before."""
        self.catch_up()
        self._pending = (step, phase, metrics)

    def catch_up(self) -> None:
        """Reads what is pending.

        Raises:
          DivergedError: a value is not finite.
        """
        if self._pending is None:
            return
        step, phase, metrics = self._pending
        self._pending = None
        series = {name: values.tolist() for name, values in parallel.fetch(metrics).items()}
        for offset in range(len(series["l_g"])):
            values = {name: series[name][offset] for name in series}
            self._check(step + offset, phase, values)
            self._since_log.append(values)
            done = step + offset + 1
            if done % self._config.log_every_steps == 0 or done in self._ends:
                self._write(done, phase)

    def show(self, step: int, phase: Phase, measured: dict[str, Any]) -> None:
        """Logs and shows an evaluation after `step` steps."""
        known = {name: value for name, value in measured.items() if value is not None}
        if self._log is not None:
            self._log.write({"step": step, "evaluation": True} | measured)
        self._progress.update(step, phase.value, self._rate, known)
        if "top1" in known:
            text = f"student: top-1 {known['top1']:.2%} after step {step}"
        else:
            text = f"student: agrees with the teacher on {known['agreement']:.1%} after step {step}"
        self._progress.say(text)

    def _check(self, step: int, phase: Phase, values: dict[str, float]) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                kept = " What was saved before stays." if self._log is not None else ""
                rate = rate_field(self._config.student)
                raise DivergedError(
                    f"the game diverged: {name} is {value} at step {step} ({phase.value}). In a "
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
            text = (
                f"L_BNS has been above {_BNS_ALARM_FACTOR:.0f} times its mean in calibration "
                f"({usual:.3g}) for {_BNS_ALARM_STEPS} steps, at step {step}: the game may be "
                "about to diverge."
            )
            self._progress.say(f"warning: {text}")
            if self._log is not None:
                self._log.write({"step": step, "warning": text})

    def _check_that_something_moves(
        self, step: int, phase: Phase, values: dict[str, float]
    ) -> None:
        """Raises ConfigError where a player has not learned for some steps, to the last bit."""
        player = "student" if phase is Phase.PLAY else "generator"
        self._still = self._still + 1 if values[f"{player}_gradient"] == 0 else 0
        if self._still == _STILL_STEPS:
            error = ConfigError(
                f"nothing is learned: the {player}'s gradient was exactly 0 in the {_STILL_STEPS} "
                f"steps up to step {step} ({phase.value}), as where teacher and student give all "
                "images the same logits; check the teacher's weights, mean and std."
            )
            error.shared = True  # every process has read the same
            raise error

    def _write(self, done: int, phase: Phase) -> None:
        mean = {
            name: float(np.mean([values[name] for values in self._since_log]))
            for name in self._since_log[0]
        }
        self._since_log = []
        now = time.monotonic()
        step, then = self._rate_from
        self._rate, self._rate_from = (done - step) / (now - then), (done, now)
        if self._log is not None:
            self._log.write(
                {"step": done, "phase": phase.value, "steps_per_second": self._rate} | mean
            )
        self._progress.update(done, phase.value, self._rate, mean)


def _range_change(widths: list[float]) -> float | None:
    """Returns how far the ranges moved in the last epoch of calibration.

    Relative change of their mean width, over layers and the steps of an epoch: single layers
    fluctuate from batch to batch by more than they drift.
    """
    return None if len(widths) < 2 else abs(widths[-1] / widths[-2] - 1)


# ---- Measuring --------------------------------------------------------------------------------


def _pictured_epochs(config) -> set[int]:
    """Returns the epochs after which a picture is taken: the first, the warm-up, parts of play."""
    played = config.epochs - config.warmup_epochs
    parts = range(_PICTURES_OF_PLAY + 1)
    return {1} | {config.warmup_epochs + played * part // _PICTURES_OF_PLAY for part in parts}


def _picture(game: Game, host: GameState, teacher: Teacher, per_class: int, classes: int) -> bytes:
    """Draws images that the generator makes now, of the first classes; always of the same noise."""
    # One batch of all classes, as far as memory goes, since the generator normalises by it.
    count = min(per_class * teacher.classes, most_at_once(teacher.image_size))
    images, labels = generate(game, host, count, count)
    shown = labels < classes
    return samples.grid(images[shown], labels[shown], teacher.mean, teacher.std, columns=per_class)


def _evaluation_is_due(epoch: int, config: ml_collections.ConfigDict) -> bool:
    if epoch <= config.warmup_epochs:
        return epoch == config.warmup_epochs  # calibrated only: what playing has to beat
    return epoch % config.evaluation.every_epochs == 0 or epoch == config.epochs


def _accuracy(config, network, dataset: Dataset | None, devices) -> dict[str, Any]:
    if dataset is None:
        return {"top1": None, "top5": None, "loss": None, "images": None}
    return evaluate(network, dataset, config.evaluation.batch_size, devices)


def _measure(config, game, host: GameState, teacher, dataset, devices) -> dict[str, Any]:
    """Measures the student: accuracy where there are images, and health on held-out ones."""
    student = student_of(game, host, teacher, {})
    accuracy = _accuracy(config, student, dataset, devices)
    together = shown_together(teacher.image_size)
    images, labels = generate(game, host, config.evaluation.generated_images, together)
    answers = health.ask(teacher, student, images, labels, config.batch_size, together)
    known = {name: accuracy[name] for name in ("top1", "top5", "loss", "images")}
    return known | answers.numbers() | {"h_prime_histogram": answers.histogram()}


def _note(record: _Record, step: int, epoch: int, config, measured: dict[str, Any]) -> None:
    noted = {name: measured[name] for name in ("top1", "top5", "images", "agreement", "health")}
    noted["step"] = step
    if epoch == config.warmup_epochs:
        record.calibrated = noted
    top1 = measured["top1"]
    if top1 is not None and top1 > record.best.get("top1", -1.0):
        record.best = noted
    if measured["health"] > record.healthiest.get("health", -1.0):
        record.healthiest = noted


def table(result: dict[str, Any]) -> str:
    """Returns a run's result as a plain table."""

    def measured(name: str) -> str:
        count = result.get(f"{name}_images")
        fewer = count is not None and count != result["evaluation_images"]
        return percent(result[f"{name}_top1"]) + (f", on {count:,} images" if fewer else "")

    bits = f"w{result['weight_bits']}a{result['activation_bits']}"
    if result["overrides"]:
        bits += f" ({', '.join(result['overrides'])})"
    best, healthiest = measured("best"), measured("healthiest")
    if result["best_top1"] is not None:
        best += f" (step {result['best_step']}, chosen on these images)"
    healthiest += f" (step {result['healthiest_step']}, chosen without data: --checkpoint=best)"
    rows = [
        ("network", f"{result['architecture']}, {bits}, seed {result['seed']}"),
        ("teacher top-1", percent(result["teacher_top1"])),
        ("calibrated only", measured("calibrated")),
        ("student top-1, last", percent(result["top1"])),
        ("student top-1, best", best),
        ("healthiest student", healthiest),
        ("agreement, generated", percent(result["agreement"])),
        ("steps", f"{result['steps']} at {result['steps_per_second']:.1f} per second"),
    ]
    return "\n".join(f"{name:<22}{value}" for name, value in rows)
