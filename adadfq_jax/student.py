"""The student: what a game leaves behind, in memory or in a workdir."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.checkpoint import Checkpoints
from adadfq_jax.config import read_back
from adadfq_jax.errors import CheckpointError, ConfigError
from adadfq_jax.game import Game, GameState
from adadfq_jax.network import Network
from adadfq_jax.storage import locate
from adadfq_jax.teachers import Teacher, load_teacher
from adadfq_jax.workdir import CONFIG, RESULT, TEACHER, read_json

_DRAWN_TOGETHER = 256

# Of images made at once: of each, the generator keeps a few arrays of 64 channels in float32.
_MOST_PIXELS = 2**21


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Student(Network):
    """The quantized classifier Q: collections `params`, `batch_stats`, `bits` and `ranges`.

    Attributes:
      result: what `result.json` holds; empty for a run that is not finished.
      teacher: the network that it is a copy of.
      step: how many steps were played; None where none were.
      draw: makes N images that no player was trained on, and their labels, as `generate` does; None
        where no generator was trained.
    """

    result: dict[str, Any]
    teacher: Teacher
    step: int | None = None
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
        step=int(state.step),
        draw=functools.partial(
            generate, game, state, batch_size=shown_together(teacher.image_size)
        ),
    )


def load_student(workdir: str | Path, checkpoint: int | str | None = None) -> Student:
    """Reads a run's student; needs nothing but its workdir.

    Args:
      workdir: the run's folder.
      checkpoint: which one: "last" or None for the newest that is whole, "best" for that of the
        healthiest student (see `health.py`; chosen without data), or the number of a step.

    Raises:
      ConfigError: `checkpoint` is something else.
      CheckpointError: there is no run in the folder, or no such checkpoint that can be read.
    """
    workdir = locate(workdir)
    game, state, teacher, step = load_state(workdir, checkpoint)
    result = read_json(workdir / RESULT) or {}
    return student_of(game, state, teacher, result if result.get("steps") == step else {})


def load_finished_student(workdir: str | Path, checkpoint: str | None) -> Student:
    """Reads a student as a command line names it: by default, of a run that is finished.

    Args:
      workdir: the run's folder.
      checkpoint: as of `load_student`.

    Raises:
      ConfigError: `checkpoint` is none, or not given and the run is not finished.
      CheckpointError: as `load_student`.
    """
    workdir = locate(workdir)
    student = load_student(workdir, checkpoint)
    if checkpoint is None and not student.result:
        lost = (workdir / RESULT).exists()
        state = "has lost its last checkpoint" if lost else "is not finished"
        raise ConfigError(
            f"the run in {str(workdir)!r} {state}; --checkpoint=last takes what there is of it."
        )
    return student


def load_state(
    workdir: str | Path, checkpoint: int | str | None = None
) -> tuple[Game, GameState, Teacher, int]:
    """Reads both players of a run; needs nothing but its workdir.

    Args:
      workdir: the run's folder.
      checkpoint: as of `load_student`.

    Returns:
      (the rules; the state, arrays without a device axis; the teacher; the step).

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
            f"{TEACHER} in {str(workdir)!r} is not the teacher of the run; put that there, as "
            "`adadfq convert` writes it."
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
                "play it again."
            )
        raise CheckpointError(f"{str(workdir)!r} holds a run without a checkpoint yet.")
    step, state, _ = restored
    return game, state, teacher, step


def most_at_once(image_size: int) -> int:
    """Returns how many images to make at a time: the generator then takes about 2 GB."""
    return max(_MOST_PIXELS // image_size**2, 2)


def shown_together(image_size: int) -> int:
    """Returns how many held-out images are made, and shown to P and Q, at a time.

    Always as many, whatever `evaluation.batch_size` is: G normalises by them, L_BNS is theirs, and
    the health of students is compared.
    """
    return min(_DRAWN_TOGETHER, most_at_once(image_size))


def generate(
    game: Game, state: GameState, count: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Makes images that no player was trained on, with the generator as it is.

    Args:
      game: the rules.
      state: its state, arrays without a device axis.
      count: how many images N.
      batch_size: images at a time, at most (`most_at_once`); classes are mixed, since G normalises
        by the batch.

    Returns:
      (images (N, H, W, 3), normalised; labels (N,)).
    """
    batch_size = min(batch_size, most_at_once(game.generator.image_size))
    batches = [game.sample(state, index, batch_size) for index in range(-(-count // batch_size))]
    images, labels = (np.concatenate(part)[:count] for part in zip(*batches, strict=True))
    return images, labels
