"""The exported students that a run keeps in its folder: which of them it wrote, of which step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections

from adadfq_jax.config.checks import export_formats
from adadfq_jax.exporting.description import read_about
from adadfq_jax.exporting.export import export
from adadfq_jax.models.network import Student
from adadfq_jax.storage.files import readable, refuse_foreign, writable
from adadfq_jax.training.workdir import STUDENTS, Workdir


def check_exports(folder: Path, config: ml_collections.ConfigDict) -> None:
    """Checks that a run replaces no file of a student's name that it did not write.

    Args:
      folder: the run's, which need not exist.
      config: the run's whole configuration, of `resolve.resolve`.

    Raises:
      ConfigError: `config.export` asks for a file in the place of another.
    """
    for format in export_formats(config):
        path = folder / STUDENTS[format]
        if path.exists() and not _is_of_run(_about(path), config):
            refuse_foreign(path, "a student of this run")


def exports_left_behind(folder: Path, total: int) -> list[str]:
    """Returns in words which exported students are of an earlier end of a run that goes on.

    Args:
      folder: the run's.
      total: the step that it goes on to.
    """
    there = [name for name in STUDENTS.values() if (folder / name).exists()]
    steps = {name: _step(_about(folder / name)) for name in there}
    return [
        f"{name} is of step {step}, and this run goes on to step {total}"
        for name, step in steps.items()
        if step not in (None, total)
    ]


def update_exports(
    student: Student,
    folder: Workdir,
    config: ml_collections.ConfigDict,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Leaves a finished run's student in the formats asked for; tells what else is not it.

    Args:
      student: as it is after the run's last step.
      folder: the run's.
      config: the run's whole configuration.
      say: takes a description of each file that was written.
      warn: takes a line for each file that is there and is not this student.

    Raises:
      ConfigError: as `check_exports`.
      ExportError, VerificationError: as `export`.
    """
    check_exports(folder.path, config)
    asked = export_formats(config)
    for format, name in STUDENTS.items():
        path = folder.path / name
        there = path.exists()
        about = _about(path) if there else {}
        if there and _is_of_student(about, student):
            continue
        if format in asked:
            folder.check_owner()
            with writable(path) as file:
                say(export(student, file, format, overwrite=True).to_text())
        elif there:
            step, now = _step(about), student.result.steps
            what = (
                "does not say that it is this run's student"
                if step in (None, now)
                else f"is of step {step}, but this run is at step {now}"
            )
            warn(f"{path} {what}: move it away, and write it anew with --config.export={format}.")


def _about(path: Path) -> dict[str, Any]:
    with readable(path) as file:
        return read_about(file)


def _step(about: dict[str, Any]) -> int | None:
    return about.get("step")


def _is_of_run(about: dict[str, Any], config: ml_collections.ConfigDict) -> bool:
    """Tells whether a run of this configuration, maybe a shorter one, wrote a file at its end."""
    result = about.get("result", {})
    return about.get("teacher") == config.teacher.digest and (
        result.get("seed"),
        result.get("weight_bits"),
        result.get("activation_bits"),
        result.get("overrides"),
    ) == (
        config.seed,
        config.quant.weight_bits,
        config.quant.activation_bits,
        list(config.quant.overrides),
    )


def _is_of_student(about: dict[str, Any], student: Student) -> bool:
    return about.get("student") == student.digest
