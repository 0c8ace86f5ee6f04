"""The report of a run: what happened and whether it went well, on one page that needs no network.

The verb is `adadfq report`. Behind it, each with one concept: `history` reads what was logged,
`behaviour` and `layers` measure the student on held-out generated images, `findings` says in words
what is wrong, `figures` draws, `page` is the HTML, `run` and `games` put it together.
"""

from pathlib import Path

from adadfq_jax.errors import CheckpointError, ConfigError
from adadfq_jax.reporting.findings import Finding
from adadfq_jax.workdir import CONFIG, SWEEP, write_whole

REPORT, FIGURES = "report.html", "report"


def write_report(workdir: str | Path, *, overwrite: bool = False) -> list[Finding]:
    """Writes `report.html` into a run's or a sweep's folder, and a run's figures into `report/`.

    Args:
      workdir: the folder.
      overwrite: whether to replace an earlier report.

    Returns:
      What the report says in words, the worst first; nothing of a sweep.

    Raises:
      ConfigError: there is a report already, or matplotlib is not installed.
      CheckpointError: there is no run, or no checkpoint that can be read.
      TeacherError: the run's teacher cannot be read.
    """
    workdir = Path(workdir)
    target = workdir / REPORT
    single = (workdir / CONFIG).exists()
    if not single and not (workdir / SWEEP).exists():
        raise CheckpointError(
            f"{str(workdir)!r} holds neither a run nor a sweep: there is no {CONFIG} or {SWEEP} in "
            "it."
        )
    if target.exists() and not overwrite:
        raise ConfigError(f"{str(target)!r} exists; --overwrite replaces it.")
    if not single:
        from adadfq_jax.reporting.games import sweep_page

        write_whole(target, sweep_page(workdir, REPORT).encode())
        return []
    _require_matplotlib()
    from adadfq_jax.reporting.run import report_run

    text, found, drawings = report_run(workdir)
    (workdir / FIGURES).mkdir(exist_ok=True)
    for drawing in drawings:
        write_whole(workdir / FIGURES / f"{drawing.name}.png", drawing.png)
    write_whole(target, text.encode())
    return found


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise ConfigError("a report needs matplotlib: pip install 'adadfq_jax[report]'.") from error
