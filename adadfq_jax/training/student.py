"""The student of a run: taken from its state in memory, or read from its workdir."""

import functools
from pathlib import Path

from adadfq_jax.config.identity import read_back
from adadfq_jax.errors import CheckpointError, ConfigError
from adadfq_jax.game.state import GameState
from adadfq_jax.game.step import Game
from adadfq_jax.models.network import Student, Teacher
from adadfq_jax.models.sums import name_with_quantized_sums
from adadfq_jax.storage.files import locate
from adadfq_jax.teachers.load import load_teacher
from adadfq_jax.training.checkpoint import Checkpoints
from adadfq_jax.training.held_out import generate
from adadfq_jax.training.result import Result, read_result
from adadfq_jax.training.workdir import CONFIG, RESULT, TEACHER, read_json


def student_of(
    game: Game, state: GameState, teacher: Teacher, result: Result | None = None
) -> Student:
    """Returns the student of a run's state.

    Args:
      game: the step and its rules.
      state: the run's state, arrays without a device axis.
      teacher: P.
      result: the run's result; None where the run is not finished.
    """
    names = result and result.class_names
    module, architecture = game.student_module, teacher.architecture
    if module != teacher.module:
        architecture = name_with_quantized_sums(architecture)
    return Student(
        architecture=architecture,
        module=module,
        variables=game.student_variables(state, teacher.variables),
        image_size=teacher.image_size,
        mean=teacher.mean,
        std=teacher.std,
        class_names=tuple(names) if names else None,
        preparation=teacher.preparation,
        result=result,
        teacher=teacher,
        step=int(state.step),
        draw=functools.partial(generate, game, state),
        given_images=game.rules.samples.images_count,
    )


def load_student(workdir: str | Path, checkpoint: int | str | None = None) -> Student:
    """Reads a run's student from its workdir alone.

    Args:
      workdir: the run's folder.
      checkpoint: "last" or None for the newest whole checkpoint, "best" for that of the healthiest
        student (chosen without data, see `evaluation/health.py`), or the number of a step.

    Raises:
      ConfigError: `checkpoint` is something else.
      CheckpointError: there is no run in the folder, or no such checkpoint that can be read.
    """
    workdir = locate(workdir)
    game, state, teacher, step = load_state(workdir, checkpoint)
    result = read_result(workdir)
    if result is not None and result.steps != step:
        result = None
    return student_of(game, state, teacher, result)


def load_finished_student(workdir: str | Path, checkpoint: str | None) -> Student:
    """Reads a run's student; without a named checkpoint, only if the run is finished.

    Args:
      workdir: the run's folder.
      checkpoint: as in `load_student`; None for the student of a finished run.

    Raises:
      ConfigError: `checkpoint` is something else, or None though the run is not finished.
      CheckpointError: as `load_student`.
    """
    workdir = locate(workdir)
    student = load_student(workdir, checkpoint)
    if checkpoint is None and student.result is None:
        lost = (workdir / RESULT).exists()
        state = "has lost its last checkpoint" if lost else "is not finished"
        raise ConfigError(
            f"the run in {str(workdir)!r} {state}; --checkpoint=last takes the newest one there is."
        )
    return student


def load_state(
    workdir: str | Path, checkpoint: int | str | None = None
) -> tuple[Game, GameState, Teacher, int]:
    """Reads a run's state from its workdir alone.

    Args:
      workdir: the run's folder.
      checkpoint: as in `load_student`.

    Returns:
      (game; state, arrays without a device axis; teacher; step of the checkpoint).

    Raises:
      ConfigError, CheckpointError: as `load_student`.
    """
    named = str(checkpoint)
    if checkpoint is not None and named not in ("last", "best") and not named.isdecimal():
        raise ConfigError(
            f"--checkpoint must be last, best or the number of a step, not {checkpoint!r}."
        )
    workdir = locate(workdir)
    written = read_json(workdir / CONFIG)
    if written is None:
        raise CheckpointError(f"{str(workdir)!r} holds no run: there is no {CONFIG} in it.")
    teacher = load_teacher(workdir / TEACHER)
    config = read_back(written)
    if teacher.digest != config.teacher.digest:
        raise CheckpointError(
            f"{TEACHER} in {str(workdir)!r} is not the teacher of the run; replace it by the "
            "run's teacher as `adadfq convert` writes it."
        )
    game = Game.create(config, teacher.module, teacher.image_size)
    template = game.init(config, teacher.variables)
    checkpoints = Checkpoints(workdir)
    try:
        only = int(named) if named.isdecimal() else None
        restored = checkpoints.restore(template, set_aside=False, step=only)
        if named == "best" and restored is not None:
            best = restored[2].get("healthiest", {}).get("step")
            if best is None:
                raise ConfigError(
                    f"the run in {str(workdir)!r} has not measured its student's health yet; "
                    "--checkpoint=last takes the newest."
                )
            if best != restored[0]:
                restored = checkpoints.restore(template, set_aside=False, step=best)
    finally:
        checkpoints.close()
    if restored is None:
        if (workdir / RESULT).exists():
            raise CheckpointError(
                f"the checkpoints of the run in {str(workdir)!r} are gone; remove its {RESULT} to "
                "train again."
            )
        raise CheckpointError(f"{str(workdir)!r} holds a run without a checkpoint yet.")
    step, state, _ = restored
    return game, state, teacher, step
