"""Condenses the logs of long runs into one small table, and draws it.

  pip install -e .[report]
  python adadfq_jax/assets/draw_curves.py --curves=curves.csv \\
    --run=w3a3=runs/w3a3 --run=w4a4=runs/w4a4
  python adadfq_jax/assets/draw_curves.py --curves=configs/long_runs.csv --figure=curves.png

A line of the table is one evaluation: top-1 in percent, and of the images trained on just before it
(as a rule 50 steps) agreement in percent and L_BNS. A run is a folder of `adadfq quantize` or of
`play_transcription.py`. Its name begins with the bit-widths, by which the figure knows the drop
that the paper reports.
"""

import argparse
import csv
import io
from pathlib import Path

import numpy as np

from adadfq_jax.errors import AdaDFQError, ConfigError
from adadfq_jax.reporting.drawing import BLUE, GREEN, GREY, ORANGE, blank, rendered
from adadfq_jax.reporting.history import History, read_history
from adadfq_jax.storage.files import check_folder_of, write_whole

COLUMNS = ("run", "step", "top1", "agreement", "l_bns")
# Top-1 of the teacher here, and how much less the best epoch of the paper has (Qian et al.,
# CVPR 2023, Table 1: a teacher of 93.89, students of 84.89, 92.31 and 93.81).
_TEACHER = 91.73
_PAPERS_DROP = {"w3a3": 9.00, "w4a4": 1.58, "w5a5": 0.08}
_MILESTONES = (20_000, 40_000, 60_000)  # steps at which both rates fall to a tenth
_COLOURS = {"w3a3": ORANGE, "w4a4": BLUE, "w5a5": GREEN}
_LOWEST_TOP1 = 75
_L_BNS = 0.15, 10  # what is shown of it
_L_BNS_TICKS = (0.2, 0.5, 1, 2, 5)


def condensed(name: str, history: History) -> list[dict[str, str]]:
    """Returns the lines of the table of a run that was evaluated on images.

    Args:
      name: what the table calls the run.
      history: its log.

    Raises:
      ConfigError: the log has no evaluation with top-1.
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
        lines.append(line)
    if not lines:
        raise ConfigError(f"run {name!r} has no evaluation on images in its log.")
    return lines


def read(path: Path) -> list[dict[str, str]]:
    """Reads the table.

    Raises:
      ConfigError: the file is no such table, or has no line.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ConfigError(f"{path} is no table of {', '.join(COLUMNS)}.")
        lines = list(reader)
    for place, line in enumerate(lines, start=2):
        try:
            int(line["step"]), float(line["top1"])
            [float(line[column]) for column in COLUMNS[3:] if line[column]]
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{path}, line {place}: {error}.") from error
    if not lines:
        raise ConfigError(f"{path} has no line below its heading.")
    return lines


def draw(lines: list[dict[str, str]]) -> bytes:
    """Draws top-1, agreement and L_BNS over the steps of every run of the table, as PNG."""
    figure = blank(6.4)
    panels = figure.subplots(3, height_ratios=(3, 2, 2), sharex=True)
    for name in dict.fromkeys(line["run"] for line in lines):
        own = [line for line in lines if line["run"] == name]
        bits = name[:4]
        colour = _COLOURS.get(bits, GREY)
        style = "-" if name == bits else "--"
        for axes, column in zip(panels, COLUMNS[2:], strict=True):
            points = [(int(line["step"]), float(line[column])) for line in own if line[column]]
            axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=1.2, label=name)
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
        "--run", action="append", default=[], metavar="NAME=FOLDER", help="a run to write into it"
    )
    parser.add_argument("--figure", type=Path, help="a .png to draw of it")
    arguments = parser.parse_args(words)
    for run in arguments.run:
        if not all(run.partition("=")):
            parser.error(f"--run is written like w3a3=runs/w3a3, not {run!r}.")
    if not arguments.run and arguments.figure is None:
        parser.error("give runs to condense (--run) or a figure to draw (--figure).")
    return arguments


def main(words: list[str] | None = None) -> None:
    """Condenses and draws what the command line, or words in its place, asks for."""
    arguments = parse(words)
    try:
        for path in filter(None, (arguments.curves, arguments.figure)):
            check_folder_of(path)
        if arguments.run:
            runs = [run.split("=", 1) for run in arguments.run]
            lines = [line for name, at in runs for line in condensed(name, read_history(Path(at)))]
            text = io.StringIO()
            writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
            write_whole(arguments.curves, text.getvalue().encode())
        if arguments.figure is not None:
            write_whole(arguments.figure, draw(read(arguments.curves)))
    except AdaDFQError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}.") from error


if __name__ == "__main__":
    main()
