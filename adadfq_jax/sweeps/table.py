"""The results of a sweep as a table: mean and standard deviation over seeds."""

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adadfq_jax.models.display import not_data_free
from adadfq_jax.sweeps.grid import Point, without_seed
from adadfq_jax.training.result import Result
from adadfq_jax.training.workdir import TABLE, TABLE_FOR_PEOPLE, TABLE_FOR_SPREADSHEETS

NAMES = (TABLE_FOR_PEOPLE, TABLE_FOR_SPREADSHEETS, TABLE)

# The numbers that are averaged, and their headings.
_MEASURED = {
    "teacher_top1": "teacher",
    "calibrated_top1": "calibrated only",
    "top1": "last",
    "best_top1": "best¹",
    "healthiest_top1": "healthiest²",
    "agreement": "agreement",
}
NOTES = """Top-1 in percent, mean ± sample standard deviation over the seeds. Agreement with the
teacher is on generated images that no student was trained on.

¹ the best evaluation, chosen on the images that it is measured on

² the evaluation of the highest health score, chosen without data"""


def result_line(result: Result) -> str:
    """Returns the result of one game on one line."""
    if result.top1 is None:
        text = f"agreement {result.agreement:.2%}"
    else:
        others = (("calibrated", result.calibrated_top1), ("teacher", result.teacher_top1))
        # A game that got evaluation images only when it was resumed lacks the calibrated top-1.
        known = [f"{word} {top1:.2%}" for word, top1 in others if top1 is not None]
        text = f"top-1 {result.top1:.2%} ({', '.join(known)})"
    if result.given_images:
        text += f", {not_data_free(result.given_images)}"
    return f"{text}, {result.seconds:.0f} s"


def table_rows(games: Sequence[tuple[Point, Result | None]]) -> list[dict[str, Any]]:
    """Returns the rows of the table: means over games that differ only in their seed.

    Args:
      games: each game with its result, None where it diverged.

    Returns:
      One dict for the games of equal fields: `fields`, their values in the grid without the seed;
      `seeds`, a list; `games` and `diverged`, numbers of games; and for each measured number its
      `values`, `mean` and sample standard deviation `std`, None where there are too few values.
    """
    groups: dict[str, list[tuple[Point, Result | None]]] = {}
    for point, result in games:
        groups.setdefault(json.dumps(without_seed(point.values)), []).append((point, result))
    found = []
    for fields, members in groups.items():
        results = [result for _, result in members if result is not None]
        row = {
            "fields": json.loads(fields),
            "seeds": [point.config.seed for point, _ in members],
            "games": len(members),
            "diverged": len(members) - len(results),
        }
        for name in (*_MEASURED, "seconds"):
            known = [getattr(result, name) for result in results]
            values = [value for value in known if value is not None]
            row[name] = {
                "values": values,
                "mean": statistics.fmean(values) if values else None,
                "std": statistics.stdev(values) if len(values) > 1 else None,
            }
        found.append(row)
    return found


def table_forms(table: dict[str, Any]) -> dict[str, str]:
    """Returns the content of the table's files by name: Markdown, CSV and JSON."""
    return {
        TABLE_FOR_PEOPLE: table_markdown(table),
        TABLE_FOR_SPREADSHEETS: _csv(table),
        TABLE: json.dumps(table, indent=2) + "\n",
    }


def is_sweep_table(path: Path) -> bool:
    """Tells whether a file is a table that a sweep wrote, by the file's heading or keys.

    Args:
      path: a file with a name in `NAMES`.
    """
    try:
        text = path.read_bytes().decode()
        if path.name == TABLE:
            return {"rows", "diverged", "outside"} <= set(json.loads(text))
    except (OSError, ValueError, TypeError):
        return False
    heading = text.partition("\n")[0]
    # "games" in tables of earlier versions.
    own = ("| runs |", "| games |") if path.name == TABLE_FOR_PEOPLE else ("games,diverged,",)
    return any(words in heading for words in own)


def table_cells(table: dict[str, Any]) -> list[list[str]]:
    """Returns the cells of the table as text, line by line, the heading first."""
    keys = list(table["rows"][0]["fields"])
    lines = [[*keys, "runs", *_MEASURED.values(), "diverged", "seconds a run"]]
    for row in table["rows"]:
        seconds = row["seconds"]["mean"]
        lines.append(
            [
                *(str(row["fields"][key]) for key in keys),
                str(row["games"]),
                *(_percent(row.get(name)) for name in _MEASURED),
                str(row["diverged"]),
                "" if seconds is None else f"{seconds:.0f}",
            ]
        )
    return lines


def table_markdown(table: dict[str, Any]) -> str:
    """Returns the table as Markdown, with notes below it."""
    heading, *cells = table_cells(table)
    lines = [heading, ["---"] * len(heading), *cells]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{NOTES}\n"
    for name, what in (
        ("diverged", "Diverged"),
        ("outside", "In this folder, but not in this grid"),
    ):
        if table[name]:
            text += f"\n{what}: {', '.join(table[name])}\n"
    return text


def _percent(measured: dict[str, Any] | None) -> str:
    if measured is None or measured["mean"] is None:  # an older table may lack a number
        return "not measured"
    deviation = "" if measured["std"] is None else f" ± {100 * measured['std']:.2f}"
    return f"{100 * measured['mean']:.2f}{deviation}"


def _csv(table: dict[str, Any]) -> str:
    file = io.StringIO()
    keys = list(table["rows"][0]["fields"])
    measured = [f"{name}_{part}" for name in (*_MEASURED, "seconds") for part in ("mean", "std")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*keys, "games", "diverged", *measured])
    for row in table["rows"]:
        numbers = [row[name.rpartition("_")[0]][name.rpartition("_")[2]] for name in measured]
        fields = [row["fields"][key] for key in keys]
        writer.writerow([*fields, row["games"], row["diverged"], *numbers])
    return file.getvalue()
