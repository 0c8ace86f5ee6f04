"""The report of a sweep: its table, figures that compare its games, and links to each game."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.evaluation.accuracy import percent
from adadfq_jax.models import registry
from adadfq_jax.models.network import flatten
from adadfq_jax.models.size import packed_bytes
from adadfq_jax.models.tracing import with_roles
from adadfq_jax.quantization.bits import assign_bits
from adadfq_jax.reporting import page, sweep_figures
from adadfq_jax.reporting.drawing import Drawing
from adadfq_jax.reporting.history import read_history
from adadfq_jax.sweeps.grid import BITS, without_seed
from adadfq_jax.sweeps.table import NOTES, table_cells
from adadfq_jax.teachers.load import load_teacher
from adadfq_jax.training.result import Result, read_result
from adadfq_jax.training.workdir import (
    CONFIG,
    DIVERGED,
    METRICS,
    RESULT,
    SWEEP,
    TABLE,
    TEACHER,
    read_json,
)


def report_sweep(workdir: Path, report: str) -> tuple[str, list[Drawing]]:
    """Makes the page of a sweep's report.

    Args:
      workdir: the sweep's folder.
      report: file name of a report, which is linked where a game has one.

    Returns:
      (the page, HTML; its figures).

    Raises:
      ConfigError: a file of the sweep is damaged.
    """
    games = (read_json(workdir / SWEEP) or {}).get("games", {})
    results = {name: _result(workdir / name) for name in games}
    sections = [_table(read_json(workdir / TABLE) or {}, len(games))]
    drawings = []
    if rows := _rows(workdir, games, results):
        for describe in (_side_by_side, _choosing):
            section, figures = describe(rows)
            sections += section
            drawings += figures
    sections.append(_every_game(workdir, results, report))
    text = page.page(
        f"Report of {workdir.absolute().name}", f"A sweep of {len(games)} runs.", sections
    )
    return text, drawings


def _table(table: dict[str, Any], games: int) -> str:
    parts = []
    if not table.get("rows"):
        parts.append(page.paragraph("The sweep is not finished: it has no table yet."))
    else:
        if sum(row["games"] for row in table["rows"]) != games:
            parts.append(
                page.paragraph(
                    "This table is of an earlier grid: the sweep with the new grid is not finished."
                )
            )
        heading, *cells = table_cells(table)
        parts += [page.table("Means over the seeds", heading, cells), page.paragraph(NOTES)]
        if table["outside"]:
            outside = ", ".join(table["outside"])
            parts.append(page.paragraph(f"In this folder, but not in this grid: {outside}"))
    return page.section("Table", *parts)


def _side_by_side(rows: list[sweep_figures.Row]) -> tuple[list[str], list[Drawing]]:
    figures = (
        sweep_figures.surface(rows),
        sweep_figures.sizes(rows),
        sweep_figures.accuracy(rows),
        sweep_figures.h_prime(rows),
        sweep_figures.generalisation(rows),
    )
    drawings = [figure for figure in figures if figure is not None]
    return [page.section("The runs side by side", page.figures(drawings))], drawings


def _choosing(rows: list[sweep_figures.Row]) -> tuple[list[str], list[Drawing]]:
    found = sweep_figures.health(rows)
    if found is None:
        return [], []
    drawing, lines = found
    section = page.section(
        "Choosing without data",
        page.paragraph(
            "How well scores that need no data rank students by top-1: Spearman's rank "
            "correlation, 1 where score and top-1 give the same order, 0 where the score says "
            'nothing of top-1. "Within a run" is the correlation over one run\'s evaluations, '
            "the median of all runs."
        ),
        page.figures([drawing]),
        page.table(
            "Rank correlation with top-1",
            ["score", "last students", "all evaluations", "within a run"],
            lines,
        ),
    )
    return [section], [drawing]


def _every_game(workdir: Path, results: dict[str, Result | None], report: str) -> str:
    cells, links = [], []
    for name, result in results.items():
        folder = workdir / name
        cells.append([name, *_game(result, (folder / DIVERGED).exists())])
        # Links the first of these files that exists; a game that has not begun has none.
        files = (report, RESULT, METRICS, CONFIG)
        links.append(next((f"{name}/{file}" for file in files if (folder / file).exists()), None))
    heading = ["run", "state", "top-1, last", "calibrated only", "agreement", "seconds"]
    return page.section("Runs", page.table("Every run", heading, cells, links))


def _rows(
    workdir: Path, games: dict[str, dict[str, Any]], results: dict[str, Result | None]
) -> list[sweep_figures.Row]:
    """Groups the finished games that differ only in their seed."""
    groups: dict[str, list[str]] = {}
    fields = {}
    for name, values in games.items():
        if results[name] is not None and not (workdir / name / DIVERGED).exists():
            common = without_seed(values)
            label = ", ".join(_word(key, value) for key, value in common.items()) or "all"
            groups.setdefault(label, []).append(name)
            fields[label] = common
    rows = []
    for label, names in groups.items():
        rows.append(
            sweep_figures.Row(
                label,
                fields[label],
                _known(results[name].top1 for name in names),
                _known(results[name].calibrated_top1 for name in names),
                [results[name].agreement for name in names],
                _size(workdir / names[0], results[names[0]]),
                [read_history(workdir / name) for name in names],
            )
        )
    return rows


def _size(folder: Path, result: Result) -> int | None:
    """Returns the bytes of a game's student; None where its teacher is not there."""
    try:
        teacher = load_teacher(folder / TEACHER)
    except TeacherError:
        return None
    module, side = teacher.module, teacher.image_size
    shapes = registry.initial_variables(module, side)["bits"]
    overrides = with_roles(result.overrides, module, side)
    bits = assign_bits(shapes, result.weight_bits, result.activation_bits, overrides)
    return packed_bytes(flatten(teacher.variables), flatten({"bits": bits}))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _result(folder: Path) -> Result | None:
    """Reads a game's result; warns of a damaged one, so that the others are still reported."""
    try:
        return read_result(folder)
    except ConfigError as error:
        warnings.warn(str(error), stacklevel=2)
        return None


def _word(key: str, value: Any) -> str:
    """Returns a short label of a field and its value; methods and bit-widths need no field name."""
    if key in ("game.method", BITS):
        return str(value)
    return f"{key.removeprefix('game.')} {value}"


def _game(result: Result | None, diverged: bool) -> list[str]:
    if result is None or diverged:
        return ["diverged" if diverged else "not finished", "", "", "", ""]
    shares = (result.top1, result.calibrated_top1, result.agreement)
    return ["finished", *map(percent, shares), f"{result.seconds:.0f}"]
