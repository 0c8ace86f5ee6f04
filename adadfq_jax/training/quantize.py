"""`quantize`: checks its arguments, takes the workdir, and trains a student or reads one."""

import contextlib
import errno
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_collections

from adadfq_jax.config.bits_file import named_bits
from adadfq_jax.config.checks import export_formats, validate
from adadfq_jax.config.identity import to_json
from adadfq_jax.config.resolve import resolve
from adadfq_jax.data.dataset import check_fits
from adadfq_jax.data.load import load_dataset
from adadfq_jax.data.unlabelled import Unlabelled, images_of
from adadfq_jax.devices import machine, processes
from adadfq_jax.errors import ConfigError, StoppedError, TeacherError
from adadfq_jax.evaluation.statistics import check_statistics
from adadfq_jax.exporting.load import require
from adadfq_jax.game.step import Game
from adadfq_jax.models.network import Student, Teacher
from adadfq_jax.storage.files import locate, translated
from adadfq_jax.teachers.load import save_teacher, teacher_of
from adadfq_jax.training import exports
from adadfq_jax.training.cost import estimate_cost
from adadfq_jax.training.loop import Run
from adadfq_jax.training.progress import Progress
from adadfq_jax.training.result import read_result
from adadfq_jax.training.student import load_student
from adadfq_jax.training.words import images_line, phase_ends
from adadfq_jax.training.workdir import ALLOCATION, TEACHER, Workdir, check_run

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@translated("the run in Cloud Storage fails")
def quantize(
    config: ml_collections.ConfigDict,
    teacher: Teacher | None = None,
    workdir: str | Path | None = None,
    *,
    should_stop: Callable[[], int | None] = lambda: None,
    show_progress: bool = True,
) -> Student:
    """Quantizes a teacher without its data: trains a student on images of a generator.

    If the workdir holds a checkpoint of the same run, the run is resumed; if it holds the finished
    run, the student is read. With several processes (`processes.start`), all of them make this same
    call, and the workdir is on a disk that they share, or in Cloud Storage.

    Args:
      config: from `default_config` or a file in `configs/`.
      teacher: a teacher in memory; None reads the one at `config.teacher.path`.
      workdir: folder for configuration, metrics, checkpoints, pictures and result, on a disk or
        `gs://BUCKET/FOLDER`; None writes nothing.
      should_stop: called before and after the first compilation, and after every dispatch; once it
        returns a signal's number, the run stops, with a checkpoint where it has taken steps.
      show_progress: whether to show a progress bar on stderr.

    Returns:
      The student after the last step.

    Raises:
      ConfigError, TeacherError, DataError: an argument cannot be used; nothing was changed.
      CheckpointError: no checkpoint of the run can be read.
      DivergedError: a loss or gradient is not finite; the last good checkpoint in a workdir stays.
      StoppedError: `should_stop` returned a signal; a checkpoint was written to a workdir.
      StorageError: a workdir in Cloud Storage is not reached; the checkpoints there stay.
    """
    began = time.monotonic()
    # ---- Check the arguments, before anything compiles ----------------------------------------
    with processes.sharing_errors():
        given = config
        config, teacher, images = _check_arguments(given, teacher, workdir)
        allocation = named_bits(given.quant.overrides)
    total = config.epochs * config.steps_per_epoch
    progress = Progress(total, show_progress and processes.leads(), phase_ends(config))

    # ---- Read a run that is finished already --------------------------------------------------
    with processes.sharing_errors():
        finished = _finished_steps(workdir, config)
    finished = processes.union(finished)
    if finished >= total:
        student = load_student(workdir)
        if student.result is not None:
            progress.say(
                f"{workdir}: the run is already complete, with {finished} steps; "
                "`adadfq evaluate --workdir` measures it on other images."
            )
            with processes.sharing_errors(), _owned(workdir, config) as folder:
                _export(student, folder, config, progress)
            return student
        progress.say(f"{workdir}: the checkpoint of the last step is lost; its steps are repeated")

    # ---- Set up the run, take the workdir, train ----------------------------------------------
    processes.check_equal("configuration", to_json(config))
    with contextlib.ExitStack() as closing:
        closing.enter_context(progress)
        with processes.sharing_errors(), progress.busy("preparing the networks"):
            run = _set_up(config, teacher, workdir, progress, should_stop, began)
        if images is not None:
            run.images = images.pixels
            progress.say(images_line(images))
        processes.check_equal("number of evaluation images", str(run.dataset and len(run.dataset)))
        _stop_before_training(should_stop)  # and not after another minute of compiling
        with processes.sharing_errors():
            run.folder = closing.enter_context(_owned(workdir, config))
            # Compiles the steps of play too; `run.play` uses them without compiling again.
            run.cost = estimate_cost(run.game, config, run.state, teacher, run.devices, progress)
            progress.say(run.cost.to_text())
        _stop_before_training(should_stop)
        with processes.sharing_errors():
            with progress.busy("looking at the teacher"):
                progress.say(f"teacher: {check_statistics(teacher).to_text()}")
            if run.folder is not None:
                run.folder.claim(config)
                _keep_teacher(run.folder, teacher)
                if allocation is not None:
                    run.folder.write_bytes(ALLOCATION, allocation)
        with translated(f"{workdir} fails"), _telling_of_a_full_disk(workdir):
            student = run.play()
            with processes.sharing_errors():
                _export(student, run.folder, config, progress)
    return student


def check(config: ml_collections.ConfigDict, workdir: str | Path) -> str:
    """Checks what `quantize` would check before it computes, and says what it would do.

    Args:
      config, workdir: as in `quantize`.

    Returns:
      One line for a person; nothing was written.

    Raises:
      ConfigError, TeacherError, DataError: as `quantize`.
    """
    config, teacher, images = _check_arguments(config, None, workdir)
    Game.create(config, teacher.module, teacher.image_size).student_bits(config)
    finished = _finished_steps(workdir, config)
    devices = machine.choose_devices(config.devices, config.batch_size)
    dataset = load_dataset(config.data.source, config.data.path, config.data.labels)
    if dataset is not None:
        check_fits(dataset, teacher)
    total = config.epochs * config.steps_per_epoch
    bits = f"w{config.quant.weight_bits}a{config.quant.activation_bits}"
    measured = "no images to measure on" if dataset is None else f"{len(dataset)} test images"
    there = f", of which {finished} are done" if finished else ""
    given = "" if images is None else f"; {images_line(images)}"
    return (
        f"{teacher.architecture} to {bits} by {config.game.method}, {total} steps{there}, on "
        f"{len(devices)} x {devices[0].device_kind}, {measured}{given}; workdir {workdir}"
    )


def _check_arguments(
    config: ml_collections.ConfigDict, teacher: Teacher | None, workdir: str | Path | None
) -> tuple[ml_collections.ConfigDict, Teacher, Unlabelled | None]:
    """Returns a run's whole configuration, its teacher, and the images that a user gave.

    Raises:
      ConfigError, TeacherError, DataError, ExportError: as `quantize`.
    """
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(
            f"the configuration must be one of default_config, not a {type(config).__name__}."
        )
    config = config.copy_and_resolve_references()
    validate(config)
    for name in export_formats(config):
        if workdir is None:
            raise ConfigError("export needs a workdir, since the files are written there.")
        require(name)
    if not isinstance(teacher, Teacher | None):
        raise TeacherError(
            "the teacher must be one of load_teacher or from_torch, not a "
            f"{type(teacher).__name__}."
        )
    teacher = teacher or teacher_of(config)
    images = images_of(config, teacher)
    return resolve(config, teacher, images), teacher, images


def _set_up(
    config: ml_collections.ConfigDict,
    teacher: Teacher,
    workdir: str | Path | None,
    progress: Progress,
    should_stop: Callable[[], int | None],
    began: float,
) -> Run:
    """Returns a run before its first step; its folder and cost are to be set.

    Raises:
      ConfigError, DataError: as `quantize`.
    """
    devices = machine.choose_devices(config.devices, config.batch_size)
    dataset = load_dataset(config.data.source, config.data.path, config.data.labels)
    if dataset is not None:
        check_fits(dataset, teacher)
    few = config.evaluation.subset
    game = Game.create(config, teacher.module, teacher.image_size)
    return Run(
        config=config,
        game=game,
        teacher=teacher,
        dataset=dataset,
        subset=dataset.stratified(few) if dataset is not None and few else dataset,
        devices=devices,
        state=game.init(config, teacher.variables),
        workdir=workdir,
        progress=progress,
        should_stop=should_stop,
        began=began,
    )


def _stop_before_training(should_stop: Callable[[], int | None]) -> None:
    """Raises StoppedError in every process where one was asked to stop while it prepared."""
    if stop := processes.union(should_stop() or 0):
        raise StoppedError(
            f"stopped by {signal.Signals(stop).name} before the first step of this call; run the "
            "same command to go on.",
            stop,
        )


def _finished_steps(workdir: str | Path | None, config: ml_collections.ConfigDict) -> int:
    """Returns the number of steps of the finished run in a folder; 0 where none has finished.

    Only the first of several processes looks; the others return 0.

    Raises:
      ConfigError: the folder is another run's, or has files that the run would replace.
    """
    if workdir is None or not processes.leads():
        return 0
    path = locate(workdir)
    # Before the folder is taken, so that a refused folder is left as it was.
    check_run(path, config)
    exports.check_exports(path, config)
    result = read_result(path)
    return 0 if result is None else result.steps


@contextlib.contextmanager
def _owned(
    workdir: str | Path | None, config: ml_collections.ConfigDict
) -> Iterator[Workdir | None]:
    """Owns a run's folder for a while; in all but the first of several processes gives None."""
    if workdir is None or not processes.leads():
        yield None
        return
    folder = Workdir(workdir)
    try:
        check_run(folder.path, config)
        yield folder
    finally:
        folder.close()


@contextlib.contextmanager
def _telling_of_a_full_disk(workdir: str | Path | None) -> Iterator[None]:
    """Turns the system's error for a full disk into a ConfigError of one sentence."""
    try:
        yield
    except OSError as error:
        if workdir is None or error.errno not in _NO_ROOM:
            raise
        raise ConfigError(
            f"workdir {str(workdir)!r} cannot be written ({error.strerror}); once there is room, "
            "the same command goes on from the newest checkpoint, or from the beginning where "
            "there is none."
        ) from error


def _export(student: Student, folder: Workdir | None, config, progress) -> None:
    """Exports a finished run's student into its workdir, and warns of exports of other steps."""
    if folder is not None:
        exports.update_exports(student, folder, config, progress.say, warnings.warn)


def _keep_teacher(folder: Workdir, teacher: Teacher) -> None:
    """Writes the teacher into a run's folder, so that a student can be read from that alone."""
    target = folder.path / TEACHER
    if not target.exists():
        save_teacher(teacher, target)
