"""The exported students in a run's folder: writing them, and telling those of other steps."""

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
    """Checks that a run's exports would replace no file that another program or run wrote.

    Args:
      folder: the run's folder, which need not exist.
      config: the run's whole configuration, from `resolve.resolve`.

    Raises:
      ConfigError: `config.export` would replace such a file.
    """
    for format in export_formats(config):
        path = folder / STUDENTS[format]
        if path.exists() and not _is_of_run(_about(path), config):
            refuse_foreign(path, "a student of this run")


def exports_left_behind(folder: Path, total: int) -> list[str]:
    """Describes exported students of an earlier, shorter schedule of a run that continues.

    Args:
      folder: the run's folder.
      total: the last step of the run as it is now configured.

    Returns:
      One line for each such file.
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
    """Exports a finished run's student in the formats of `config.export`, where not done before.

    Args:
      student: the student after the run's last step.
      folder: the run's folder.
      config: the run's whole configuration.
      say: takes a description of each file that was written.
      warn: takes a line for each other exported file that holds another student than this.

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
    """Tells whether a run of this configuration, of any length, exported a student.

    Args:
      about: what the file says of itself, from `read_about`.
      config: the run's whole configuration.
    """
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
