"""The verb `adadfq report`: writes the report of a run or a sweep into its folder."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adadfq_jax.errors import CheckpointError, ConfigError, TeacherError, install_command
from adadfq_jax.models.pictures import is_own
from adadfq_jax.reporting.findings import Finding
from adadfq_jax.storage.files import (
    check_replaceable,
    is_remote,
    locate,
    refuse_foreign,
    write_whole,
)
from adadfq_jax.training.workdir import (
    CONFIG,
    EVENTS,
    FIGURES,
    REPORT,
    RESULT,
    SAMPLES_OVER_TIME,
    SWEEP,
    check_sweep,
    read_json,
)

if TYPE_CHECKING:  # imports matplotlib, which may be missing
    from adadfq_jax.reporting.drawing import Drawing


def write_report(
    workdir: str | Path, *, overwrite: bool = False, games: bool = True
) -> list[Finding]:
    """Writes `report.html` into a run's or a sweep's folder, and its figures into `report/`.

    For a run, TensorBoard events are written into `tensorboard/` as well. For a sweep, every
    finished game without a newer report gets a report in its folder.

    Args:
      workdir: the folder.
      overwrite: whether to replace an earlier report.
      games: whether to report the games of a sweep too.

    Returns:
      The findings of a run, the worst first; an empty list for a sweep.

    Raises:
      ConfigError: there is a report already, or a file that the report would replace and no report
        wrote, or a package for reports is not installed.
      CheckpointError: there is no run, or no checkpoint that can be read.
      TeacherError: the run's teacher cannot be read.
    """
    workdir = _on_a_disk(workdir)
    single = (workdir / CONFIG).exists()
    if not single:
        check_sweep(workdir)
    if not single and not (workdir / SWEEP).exists():
        raise CheckpointError(
            f"{str(workdir)!r} holds neither a run nor a sweep: there is no {CONFIG} or {SWEEP} in "
            "it."
        )
    require_packages()
    _check_page(workdir, overwrite)
    _check_parts(workdir)
    if single:
        return _report_run(workdir)
    _report_sweep(workdir, games)
    return []


def _report_run(workdir: Path) -> list[Finding]:
    from adadfq_jax.reporting.history import read_history, read_pictures
    from adadfq_jax.reporting.run_report import report_run
    from adadfq_jax.reporting.tensorboard import write_events

    logged = read_history(workdir)
    pictures = read_pictures(workdir / SAMPLES_OVER_TIME)
    text, found, drawings = report_run(workdir, logged, pictures)
    write_events(workdir / EVENTS, logged, pictures)
    _write(workdir, text, drawings)
    return found


def _report_sweep(workdir: Path, games: bool) -> None:
    from adadfq_jax.reporting.sweep_report import report_sweep

    names = (read_json(workdir / SWEEP) or {}).get("games", {}) if games else ()
    missing = [
        name
        for name in names
        if (result := workdir / name / RESULT).exists()
        and not _is_newer(workdir / name / REPORT, result)
    ]
    for number, name in enumerate(missing, start=1):
        print(f"[{number}/{len(missing)}] {name}", flush=True)
        try:
            _check_page(workdir / name, overwrite=True)
            _check_parts(workdir / name)
            _report_run(workdir / name)
        except (ConfigError, CheckpointError, TeacherError) as error:
            warnings.warn(f"{name} gets no report: {error}", stacklevel=2)
    _write(workdir, *report_sweep(workdir, REPORT))


def _check_page(workdir: Path, overwrite: bool) -> None:
    """Raises ConfigError where a page would replace a file of others, or an earlier page."""
    from adadfq_jax.reporting import page

    check_replaceable(workdir / REPORT, "a report", page.is_own, overwrite)


def _check_parts(workdir: Path) -> None:
    """Raises ConfigError where figures or events would replace files that no report wrote."""
    from adadfq_jax.reporting.tensorboard import SUFFIX

    for name in (FIGURES, EVENTS):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            refuse_foreign(workdir / name, "a folder of a report")
    for path in sorted((workdir / FIGURES).glob("*.png")):
        if not is_own(path):
            refuse_foreign(path, "a figure")
    for path in sorted((workdir / EVENTS).glob("*")):
        if not path.name.endswith(SUFFIX):
            refuse_foreign(path, "a report's events for TensorBoard")


def _is_newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime_ns > other.stat().st_mtime_ns


def _write(workdir: Path, text: str, drawings: Sequence["Drawing"]) -> None:
    (workdir / FIGURES).mkdir(exist_ok=True)
    for drawing in drawings:
        write_whole(workdir / FIGURES / f"{drawing.name}.png", drawing.png)
    write_whole(workdir / REPORT, text.encode(errors="backslashreplace"))


def _on_a_disk(workdir: str | Path) -> Path:
    found = locate(workdir)
    if is_remote(found):
        raise ConfigError(
            f"a report is written only on a disk, and {str(found)!r} is in Cloud Storage: copy it "
            f"(gcloud storage cp -r {found} .) and report the copy."
        )
    return found


def require_packages() -> None:
    """Checks that the packages for reports are installed.

    Raises:
      ConfigError: a package is missing; the message names the command that installs it.
    """
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
        import tensorboardX  # noqa: F401 (only whether they are there)
    except ImportError as error:
        raise ConfigError(f"a report needs {error.name}: {install_command('report')}.") from error
