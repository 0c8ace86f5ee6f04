"""The student: what a game leaves behind, in memory or in a workdir."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from adadfq_jax.checkpoint import Checkpoints
from adadfq_jax.errors import CheckpointError, ConfigError
from adadfq_jax.game import Game, GameState
from adadfq_jax.network import Network
from adadfq_jax.teachers import Teacher, load_teacher
from adadfq_jax.workdir import CONFIG, RESULT, TEACHER, read_json

_DRAWN_TOGETHER = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Student(Network):
    """The quantized classifier Q: collections `params`, `batch_stats`, `bits` and `ranges`.

    Attributes:
      result: what `result.json` holds; empty for a run that is not finished.
      teacher: the network that it is a copy of.
      draw: makes N images that no player was trained on, and their labels, as `generate` does; None
        where no generator was trained.
    """

    result: dict[str, Any]
    teacher: Teacher
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None


def student_of(game: Game, state: GameState, teacher: Teacher, result: dict[str, Any]) -> Student:
    """Takes the student out of a game's state (arrays without a device axis)."""
    return Student(
        architecture=teacher.architecture,
        module=teacher.module,
        variables={
            "params": state.student.params,
            "batch_stats": teacher.variables["batch_stats"],
            "bits": state.bits,
            "ranges": state.ranges,
        },
        image_size=teacher.image_size,
        mean=teacher.mean,
        std=teacher.std,
        result=result,
        teacher=teacher,
        draw=functools.partial(generate, game, state, batch_size=_DRAWN_TOGETHER),
    )


def load_student(workdir: str | Path, step: int | None = None) -> Student:
    """Reads a run's student; needs nothing but its workdir.

    Args:
      workdir: the run's folder.
      step: of which checkpoint; by default of the newest that is whole.

    Raises:
      CheckpointError: there is no run in the folder, or no such checkpoint that can be read.
    """
    game, state, teacher, step = load_state(workdir, step)
    result = read_json(Path(workdir) / RESULT) or {}
    return student_of(game, state, teacher, result if result.get("steps") == step else {})


def load_student_at(workdir: str | Path, checkpoint: str | None) -> Student:
    """Reads a run's student from the checkpoint that a command line names.

    Args:
      workdir: the run's folder.
      checkpoint: "last", "best" (the healthiest that was kept, see `health.py`) or the number of a
        step; None for the end of a finished run.

    Raises:
      ConfigError: it is something else, or None and the run is not finished.
      CheckpointError: as `load_student`.
    """
    if checkpoint in (None, "last"):
        student = load_student(workdir)
        if checkpoint is None and not student.result:
            raise ConfigError(
                f"the run in {str(workdir)!r} is not finished; --checkpoint=last takes what there "
                "is of it."
            )
        return student
    if checkpoint == "best":
        step = Checkpoints(Path(workdir)).healthiest()
        if step is None:
            raise ConfigError(
                f"the run in {str(workdir)!r} has not measured the health of a student that it "
                "kept; --checkpoint=last takes the newest."
            )
        return load_student(workdir, step)
    if not checkpoint.isdecimal():
        raise ConfigError(
            f"--checkpoint must be last, best or the number of a step, not {checkpoint!r}."
        )
    return load_student(workdir, int(checkpoint))


def load_state(
    workdir: str | Path, step: int | None = None
) -> tuple[Game, GameState, Teacher, int]:
    """Reads both players of a run; needs nothing but its workdir.

    Args:
      workdir: the run's folder.
      step: of which checkpoint; by default of the newest that is whole.

    Returns:
      (the rules; the state, arrays without a device axis; the teacher; the step).

    Raises:
      CheckpointError: as `load_student`.
    """
    workdir = Path(workdir)
    written = read_json(workdir / CONFIG)
    if written is None:
        raise CheckpointError(f"{str(workdir)!r} holds no run: there is no {CONFIG} in it.")
    teacher = load_teacher(workdir / TEACHER)
    config = ml_collections.ConfigDict(written)
    game = Game.create(config, teacher.module, teacher.image_size)
    checkpoints = Checkpoints(workdir)
    try:
        restored = checkpoints.restore(
            game.init(config, teacher.variables), set_aside=False, step=step
        )
    finally:
        checkpoints.close()
    if restored is None:
        raise CheckpointError(f"{str(workdir)!r} holds a run without a checkpoint yet.")
    step, state, _ = restored
    return game, state, teacher, step


def generate(
    game: Game, state: GameState, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Makes images that no player was trained on, with the generator as it is.

    Args:
      game: the rules.
      state: its state, arrays without a device axis.
      count: how many images N.
      batch_size: images at a time; classes are mixed, since G normalises by the batch.

    Returns:
      (images (N, H, W, 3), normalised; labels (N,)).
    """
    batches = [game.sample(state, index, batch_size) for index in range(-(-count // batch_size))]
    images, labels = (np.concatenate(part)[:count] for part in zip(*batches, strict=True))
    return images, labels
