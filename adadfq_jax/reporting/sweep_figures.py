"""The figures of a sweep's report, which compare its games."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from adadfq_jax.reporting.drawing import (
    BLUE,
    GREEN,
    GREY,
    LIGHT_BLUE,
    ORANGE,
    Drawing,
    blank,
    drawn,
    one_panel,
)
from adadfq_jax.reporting.history import History
from adadfq_jax.sweeps.grid import spans_surface, varied

_MOST_CURVES, _MOST_PANELS = 6, 8
_COLOURS = (BLUE, ORANGE, GREEN, "#8e3a9d", "#b57b00", "#555555")
# The region that Qian et al., CVPR 2023, report as robust.
_ROBUST = {"game.lambda_l": (0.0, 0.2), "game.lambda_u": (0.7, 0.9)}
# Scores that need no data: label, and 1 if a larger value is better, else -1.
_SCORES = {
    "health": ("health score", 1),
    "agreement": ("agreement alone", 1),
    "in_margin": ("share inside the margin alone", 1),
    "held_out_l_bns": ("L_BNS alone, negated", -1),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """The games of a sweep that differ only in their seed.

    Attributes:
      name: label of the values that the games have in common.
      fields: these values by field.
      top1: top-1 of the students after the last step, fractions; only those that were measured.
      calibrated: top-1 of the calibrated students, fractions; only those that were measured.
      agreement: share of generated images to which teacher and student give the same class.
      size: bytes of the student with packed codes; None where it is not known.
      histories: logs of the games.
    """

    name: str
    fields: Mapping[str, Any]
    top1: Sequence[float]
    calibrated: Sequence[float]
    agreement: Sequence[float]
    size: int | None
    histories: Sequence[History]


def accuracy(rows: Sequence[Row]) -> Drawing | None:
    """Draws the mean top-1 of every row and that of each seed; None where it was not measured."""
    measured = [row for row in rows if row.top1]
    if not measured:
        return None
    figure, axes = one_panel(0.3 * len(measured) + 0.9)
    alt = []
    for place, row in enumerate(measured):
        mean = 100 * np.mean(row.top1)
        axes.barh(place, mean, color=LIGHT_BLUE)
        axes.plot(100 * np.array(row.top1), [place] * len(row.top1), "o", color=BLUE, markersize=3)
        if row.calibrated:
            axes.plot(100 * np.mean(row.calibrated), place, "|", color=ORANGE, markersize=12)
        alt.append(f"{row.name}: {mean:.2f}.")
    axes.set_yticks(range(len(measured)), [row.name for row in measured], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("top-1 in percent; blue: last step, mean and seeds; orange: calibrated only")
    axes.xaxis.label.set_fontsize(8)
    return drawn("accuracy", "Top-1 of the runs", " ".join(alt), figure)


def sizes(rows: Sequence[Row]) -> Drawing | None:
    """Draws top-1, or agreement where nobody measured it, over the size of the packed student.

    None where fewer than two sizes are known.
    """
    measured = all(row.top1 for row in rows)
    name = "top-1" if measured else "agreement on generated images"
    known = [row for row in rows if row.size is not None]
    if len({row.size for row in known}) < 2:
        return None
    figure, axes = one_panel(3.2)
    alt = []
    for row, colour in zip(known, itertools.cycle(_COLOURS), strict=False):
        values = 100 * np.array(row.top1 if measured else row.agreement)
        size = row.size / 1000
        axes.plot([size] * len(values), values, "o", color=colour, markersize=4, label=row.name)
        alt.append(f"{row.name}: {size:.0f} kB, {name} {values.mean():.2f} percent.")
    axes.set_xlabel("kB of the student, its codes packed", fontsize=8)
    axes.set_ylabel(f"{name} in percent", fontsize=8)
    figure.legend(loc="outside upper center", ncols=2, fontsize=7)
    return drawn("sizes", f"{name[0].upper()}{name[1:]} over size", " ".join(alt), figure)


def surface(rows: Sequence[Row]) -> Drawing | None:
    """Draws top-1 over two fields as a heat map; None unless exactly two numeric fields vary."""
    names = varied([row.fields for row in rows])
    if not spans_surface(names):
        return None
    names = {name: sorted(values) for name, values in names.items()}
    vertical, horizontal = names
    values = np.full((len(names[vertical]), len(names[horizontal])), np.nan)
    for row in rows:
        if row.top1:
            place = (
                names[vertical].index(row.fields[vertical]),
                names[horizontal].index(row.fields[horizontal]),
            )
            values[place] = 100 * np.mean(row.top1)
    if not np.isfinite(values).any():
        return None
    figure, axes = one_panel(0.55 * len(names[vertical]) + 1.0)
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "black" if value > middle else "white"
            axes.annotate(
                f"{value:.1f}", (j, i), ha="center", va="center", fontsize=7, color=colour
            )
    for axis, name in ((axes.xaxis, horizontal), (axes.yaxis, vertical)):
        axis.set_ticks(range(len(names[name])), [f"{value:g}" for value in names[name]])
        axis.set_label_text(name)
    alt = f"Top-1 over {horizontal} and {vertical}, "
    alt += f"from {np.nanmin(values):.2f} to {np.nanmax(values):.2f} percent."
    if names.keys() == _ROBUST.keys():
        spans = []
        for name in (horizontal, vertical):
            inside = [
                place
                for place, value in enumerate(names[name])
                if _ROBUST[name][0] <= value <= _ROBUST[name][1]
            ]
            spans.append((min(inside), max(inside)) if inside else None)
        if None not in spans:
            (left, right), (low, high) = spans
            corner = left - 0.5, low - 0.5
            frame = Rectangle(
                corner, right - left + 1, high - low + 1, fill=False, edgecolor=ORANGE, linewidth=2
            )
            axes.add_patch(frame)
            alt += " The frame is the region that the paper reports as robust."
    figure.colorbar(image, label="top-1 in percent, last step")
    return drawn("surface", f"Top-1 over {horizontal} and {vertical}", alt, figure)


def h_prime(rows: Sequence[Row]) -> Drawing | None:
    """Draws the mean H' of training batches over the steps, for all rows if few, else for three."""
    curves = [(row.name, *_mean_curve(row, "h_prime")) for row in rows]
    curves = [curve for curve in curves if len(curve[1])]
    if not curves:
        return None
    title = "H' over training"
    if len(curves) > _MOST_CURVES:
        curves.sort(key=lambda curve: curve[2][-1])
        curves = [curves[0], curves[len(curves) // 2], curves[-1]]
        title += ": the lowest, the middle and the highest in the end"
    figure, axes = one_panel(3.0)
    alt = []
    for (name, steps, values), colour in zip(curves, _COLOURS, strict=False):
        axes.plot(steps, values, color=colour, linewidth=1.2, label=name)
        alt.append(f"{name}: {values[0]:.2f} at first, {values[-1]:.2f} in the end.")
    axes.set_ylim(0, 1)
    axes.set_xlabel("step")
    axes.set_ylabel("H': 0 disagree, 1 agree")
    figure.legend(loc="outside upper center", fontsize=7)
    return drawn("h_prime", title, " ".join(alt), figure)


def generalisation(rows: Sequence[Row]) -> Drawing | None:
    """Draws the loss on generated and on evaluation images, one panel for each of eight rows."""
    panels = [
        (row.name, _mean_evaluation(row, "held_out_loss"), _mean_evaluation(row, "loss"))
        for row in rows
    ]
    panels = [panel for panel in panels if len(panel[1][0])][:_MOST_PANELS]
    if not panels:
        return None
    lines = -(-len(panels) // 2)
    figure = blank(1.5 * lines + 0.6)
    alt = []
    for place, (name, made, real) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, 2, place)
        axes.set_title(name, fontsize=8)
        axes.plot(*made, "o-", color=ORANGE, markersize=2, linewidth=1, label="generated images")
        text = f"{name}: generated {made[1][0]:.3g} to {made[1][-1]:.3g}"
        if len(real[0]):
            axes.plot(*real, "o-", color=BLUE, markersize=2, linewidth=1, label="evaluation images")
            text += f", evaluation {real[1][0]:.3g} to {real[1][-1]:.3g}"
        axes.tick_params(labelsize=7)
        axes.set_ylim(bottom=0)
        axes.xaxis.get_major_locator().set_params(nbins=3, integer=True)
        alt.append(f"{text}.")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    return drawn(
        "generalisation",
        "The student's cross entropy on generated and real images",
        " ".join(alt),
        figure,
    )


def health(rows: Sequence[Row]) -> tuple[Drawing, list[list[str]]] | None:
    """Draws top-1 over health, and computes how well each score without data ranks top-1.

    Returns:
      (figure; a line for each score: its label and Spearman's rank correlation with top-1 over the
      last students, over all evaluations, and over one game's evaluations as the median of the
      games). None where fewer than three students have both health and top-1.
    """
    games = [history.evaluations for row in rows for history in row.histories]
    last = _known([record for game in games for record in game[-1:]])
    if len(last) < 3:
        return None
    games = [_known(game) for game in games]
    everything = [record for game in games for record in game]
    lines = []
    for name, (label, sign) in _SCORES.items():
        within = [_rank(game, name, sign) for game in games]
        within = [value for value in within if np.isfinite(value)]
        cells = [_rank(last, name, sign), _rank(everything, name, sign)]
        cells.append(np.median(within) if within else np.nan)
        lines.append([label, *("not known" if np.isnan(cell) else f"{cell:.2f}" for cell in cells)])

    figure, axes = one_panel(3.0)
    for records, colour, label, size in (
        (everything, GREY, "all evaluations", 2),
        (last, BLUE, "last students", 5),
    ):
        axes.plot(
            [record["health"] for record in records],
            [100 * record["top1"] for record in records],
            "o",
            color=colour,
            markersize=size,
            label=label,
        )
    axes.set_xlabel("health, without data")
    axes.set_ylabel("top-1 in percent")
    axes.legend(fontsize=8)
    alt = (
        f"Top-1 over health: Spearman's rank correlation is {lines[0][1]} over {len(last)} last "
        f"students and {lines[0][2]} over all {len(everything)} evaluations."
    )
    return drawn("health", "What the health score tells of top-1", alt, figure), lines


def _known(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        record for record in records if record["top1"] is not None and record["health"] is not None
    ]


def _rank(records: Sequence[Mapping[str, Any]], name: str, sign: int) -> float:
    pairs = [
        (sign * record[name], record["top1"]) for record in records if record[name] is not None
    ]
    if len(pairs) < 3 or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return float("nan")
    from scipy.stats import spearmanr  # here, because it takes a second

    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _mean_curve(row: Row, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, mean over the games) of a logged curve, at steps that all games have."""
    return _mean([history.curves[name] for history in row.histories if name in history.curves])


def _mean_evaluation(row: Row, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (steps, mean over the games) of an evaluated number, at steps that all games have."""
    curves = [history.evaluated(name) for history in row.histories]
    return _mean([(steps[np.isfinite(v)], v[np.isfinite(v)]) for steps, v in curves])


def _mean(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not curves:
        return np.zeros(0), np.zeros(0)
    tables = [dict(zip(*map(np.ndarray.tolist, curve), strict=True)) for curve in curves]
    steps = sorted(set.intersection(*map(set, tables)))
    values = [np.mean([table[step] for table in tables]) for step in steps]
    return np.array(steps), np.array(values)
