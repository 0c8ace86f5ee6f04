"""The report of a sweep: its table, and the way to its games."""

from pathlib import Path
from typing import Any

from adadfq_jax import sweep_table
from adadfq_jax.reporting import page
from adadfq_jax.sweep import DIVERGED
from adadfq_jax.workdir import CONFIG, METRICS, RESULT, SWEEP, read_json


def sweep_page(workdir: Path, report: str) -> str:
    """Describes a sweep.

    Args:
      workdir: the sweep's folder.
      report: name of a report's file, to link where a game has one.

    Raises:
      ConfigError: a file of the sweep is damaged.
    """
    games = (read_json(workdir / SWEEP) or {}).get("games", {})
    parts, table = [], read_json(workdir / "table.json")
    if table is None:
        parts.append(page.paragraph("The sweep is not finished: it has no table yet."))
    else:
        heading, *rows = sweep_table.cells(table)
        parts += [
            page.table("Means over the seeds", heading, rows),
            page.paragraph(sweep_table.NOTES),
        ]
    rows, links = [], []
    for name in games:
        folder = workdir / name
        result = read_json(folder / RESULT)
        rows.append([name, *_game(result, (folder / DIVERGED).exists())])
        # The best that there is to read of it; a game that nobody has begun has nothing.
        files = (report, RESULT, METRICS, CONFIG)
        links.append(next((f"{name}/{file}" for file in files if (folder / file).exists()), None))
    heading = ["game", "state", "top-1, last", "calibrated only", "agreement", "seconds"]
    return page.page(
        f"Report of {workdir.absolute().name}",
        f"A sweep of {len(games)} games; `adadfq report --workdir={workdir}/GAME` reports one.",
        [
            page.section("Table", *parts),
            page.section("Games", page.table("Every game", heading, rows, links)),
        ],
    )


def _game(result: dict[str, Any] | None, diverged: bool) -> list[str]:
    if result is None or diverged:
        return ["diverged" if diverged else "not finished", "", "", "", ""]
    shares = [result.get(name) for name in ("top1", "calibrated_top1", "agreement")]
    return [
        "finished",
        *("not measured" if share is None else f"{share:.2%}" for share in shares),
        f"{result['seconds']:.0f}",
    ]
