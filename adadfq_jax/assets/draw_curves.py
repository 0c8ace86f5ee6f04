"""Condenses the logs of long runs into one small table, and draws it.

  pip install -e .[report]
  python adadfq_jax/assets/draw_curves.py --curves=curves.csv \\
    --run=w3a3=runs/w3a3 --run=w4a4=runs/w4a4
  python adadfq_jax/assets/draw_curves.py --curves=configs/long_runs.csv --figure=curves.png

A line of the table is one evaluation: top-1 in percent, and of the images trained on just before it
(as a rule 50 steps) agreement in percent and L_BNS. A run is a folder of `adadfq quantize` or of
`play_transcription.py`; its lines replace those of that name, and the other runs' stay.

The figure is of the CIFAR-10 ResNet-20 on the paper's schedule: it shows that teacher, the steps at
which the rates fall and, for a run that is called w3a3, w4a4 or w5a5 and nothing more, how far the
paper's best epoch lies below the paper's teacher. A run whose name only begins so is dashed, in
that colour; any other is dashed and grey.
"""

import argparse
import csv
import io
import math
from pathlib import Path

import numpy as np

from adadfq_jax.errors import AdaDFQError, ConfigError
from adadfq_jax.models import pictures
from adadfq_jax.reporting.drawing import BLUE, GREEN, GREY, ORANGE, blank, rendered
from adadfq_jax.reporting.history import History, read_history
from adadfq_jax.storage.files import (
    check_folder_of,
    check_replaceable,
    is_remote,
    locate,
    on_a_disk,
    write_whole,
)

COLUMNS = ("run", "step", "top1", "agreement", "l_bns")
# Top-1 of the teacher on the 1,000 images of the runs in configs/long_runs.csv (of all 10,000 it is
# 91.73), and how much less the best epoch of the paper has (Qian et al., CVPR 2023, Table 1: a
# teacher of 93.89, students of 84.89, 92.31 and 93.81).
_TEACHER = 91.40
_PAPERS_DROP = {"w3a3": 9.00, "w4a4": 1.58, "w5a5": 0.08}
_MILESTONES = (20_000, 40_000, 60_000)  # steps at which both rates fall to a tenth
_COLOURS = {"w3a3": ORANGE, "w4a4": BLUE, "w5a5": GREEN}
_LOWEST_TOP1 = 75
_MOST_STEPS = 10**9
_L_BNS = 0.15, 10  # what is shown of it
_L_BNS_TICKS = (0.2, 0.5, 1, 2, 5)


def condensed(name: str, history: History) -> list[dict[str, str]]:
    """Returns the lines of the table of a run that was evaluated on images.

    Args:
      name: what the table calls the run.
      history: its log.

    Raises:
      ConfigError: the log has no evaluation with top-1, or one that cannot be.
    """
    lines = []
    for step, value in zip(*history.evaluated("top1"), strict=True):
        if not np.isfinite(value):
            continue
        line = {"run": name, "step": str(step), "top1": f"{100 * value:.2f}"}
        for column, scale in (("agreement", 100), ("l_bns", 1)):
            steps, values = history.curves.get(column, (np.zeros(0), np.zeros(0)))
            known = np.flatnonzero((steps <= step) & np.isfinite(values))
            line[column] = f"{scale * values[known[-1]]:.4g}" if known.size else ""
        try:
            _check(line)
        except ValueError as error:
            raise ConfigError(f"run {name!r}, step {step}: {error}.") from error
        lines.append(line)
    if not lines:
        raise ConfigError(f"run {name!r} has no evaluation on images in its log.")
    return lines


def read(path: Path) -> list[dict[str, str]]:
    """Reads the table.

    Raises:
      ConfigError: the file is no such table.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ConfigError(f"{path} is no table of {', '.join(COLUMNS)}.")
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no table of {', '.join(COLUMNS)}: {error}.") from error
    for place, line in enumerate(lines, start=2):
        try:
            _check(line)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {place}: {error}.") from error
    return lines


def _check(line: dict[str, str]) -> None:
    """Raises ValueError or TypeError unless a line has a number where one belongs."""
    if None in line or not line["run"]:
        raise ValueError(f"there must be {len(COLUMNS)} cells, and a name in the first")
    if not 0 <= int(line["step"]) <= _MOST_STEPS:
        raise ValueError(f"step must be at least 0 and at most {_MOST_STEPS:,}, not {line['step']}")
    for column, most in zip(COLUMNS[2:], (100, 100, math.inf), strict=True):
        if line[column] == "" and column != "top1":
            continue
        value = float(line[column])
        if not (0 <= value <= most and math.isfinite(value)):
            limit = "" if math.isinf(most) else f" and at most {most}"
            raise ValueError(f"{column} must be at least 0{limit}, not {line[column]}")


def updated(
    lines: list[dict[str, str]], runs: dict[str, list[dict[str, str]]]
) -> list[dict[str, str]]:
    """Returns the lines of a table in which those of some runs are replaced, or come at the end.

    Args:
      lines: the table.
      runs: the new lines, by the name of the run.
    """
    kept: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        kept.setdefault(line["run"], []).append(line)
    return [line for own in (kept | runs).values() for line in own]


def draw(lines: list[dict[str, str]]) -> bytes:
    """Draws top-1, agreement and L_BNS over the steps of every run of the table, as PNG."""
    figure = blank(6.4)
    panels = figure.subplots(3, height_ratios=(3, 2, 2), sharex=True)
    for name in dict.fromkeys(line["run"] for line in lines):
        own = [line for line in lines if line["run"] == name]
        bits = name[:4]
        colour = _COLOURS.get(bits, GREY)
        style = "-" if name == bits else "--"
        label = name.replace("$", r"\$")  # which begins a formula otherwise
        for axes, column in zip(panels, COLUMNS[2:], strict=True):
            points = [(int(line["step"]), float(line[column])) for line in own if line[column]]
            steps, values = zip(*points, strict=True) if points else ((), ())
            axes.plot(steps, values, style, color=colour, linewidth=1.2, label=label)
        if name in _PAPERS_DROP:
            panels[0].axhline(_TEACHER - _PAPERS_DROP[name], color=colour, linestyle=":")
    panels[0].axhline(_TEACHER, color=GREY, linestyle="-", linewidth=0.8)
    panels[0].set_ylim(_LOWEST_TOP1, _TEACHER + 1)
    panels[1].set_ylim(0, 100)
    panels[2].set_yscale("log")
    panels[2].set_ylim(*_L_BNS)
    panels[2].set_yticks(_L_BNS_TICKS, map(str, _L_BNS_TICKS))
    panels[2].set_yticks([], minor=True)
    for axes, label in zip(panels, ("top-1, percent", "agreement, percent", "L_BNS"), strict=True):
        axes.set_ylabel(label, fontsize=8)
        axes.tick_params(labelsize=8)
        for step in _MILESTONES:
            axes.axvline(step, color=GREY, linewidth=0.5)
    panels[-1].set_xlabel("step; rates fall to a tenth at the vertical lines", fontsize=8)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8
    )
    return rendered(figure)


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or words in its place."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--curves", required=True, type=Path, help="the table, a .csv")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a run to write into it, in place of an earlier one of that name",
    )
    parser.add_argument("--figure", type=Path, help="a .png to draw of it")
    arguments = parser.parse_args(words)
    for flag, suffix in (("curves", ".csv"), ("figure", ".png")):
        path = getattr(arguments, flag)
        if path is not None and path.suffix != suffix:
            parser.error(f"--{flag} must end in {suffix}, not {path.name!r}.")
    names = [run.partition("=")[0] for run in arguments.run]
    for name, run in zip(names, arguments.run, strict=True):
        if not all(run.partition("=")):
            parser.error(f"--run is written like w3a3=runs/w3a3, not {run!r}.")
        if names.count(name) > 1:
            parser.error(f"--run names {name!r} twice.")
    if not arguments.run and arguments.figure is None:
        parser.error("give runs to condense (--run) or a figure to draw (--figure).")
    return arguments


def main(words: list[str] | None = None) -> None:
    """Condenses and draws what the command line, or words in its place, asks for."""
    arguments = parse(words)
    try:
        curves = on_a_disk(arguments.curves)
        figure = None if arguments.figure is None else on_a_disk(arguments.figure)
        for path in filter(None, (curves, figure)):
            check_folder_of(path)
        if figure is not None:
            check_replaceable(figure, "a figure", pictures.is_own, overwrite=True)
        lines = read(curves) if curves.exists() or not arguments.run else []
        if arguments.run:
            runs = dict(run.split("=", 1) for run in arguments.run)
            lines = updated(lines, {name: condensed(name, _log(at)) for name, at in runs.items()})
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
            write_whole(curves, text.getvalue().encode())
        if figure is not None:
            if not lines:
                raise ConfigError(f"{curves} has no line below its heading.")
            write_whole(figure, draw(lines))
    except AdaDFQError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}.") from error


def _log(text: str) -> History:
    """Reads the log in the folder that a text names."""
    workdir = locate(text)
    if not is_remote(workdir) and not workdir.is_dir():
        raise ConfigError(f"{text!r} is not the folder of a run.")
    return read_history(workdir)


if __name__ == "__main__":
    main()
