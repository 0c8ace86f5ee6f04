"""The figures of a run's report."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from PIL import Image

from adadfq_jax.evaluation.health import Answers
from adadfq_jax.models.pictures import draw_grid, side_by_side, to_png
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

_PHASE_COLOURS = {"calibration": "#e3ecf7", "warm-up": "#fbeedd", "play": "#ffffff"}
_LOSSES = {
    "l_g": "L_G, generator",
    "l_q": "L_Q, student",
    "l_ds": "L_ds, disagreement",
    "l_as": "L_as, agreement",
    "l_bal": "L_bal, balance",
    "l_margin": "L_margin",
    "l_ce": "L_CE, cross entropy",
    "l_bns": "L_BNS, statistics",
}
_MOST_CLASSES = 16  # in the picture of samples
_MOST_MOMENTS = 6
_LARGEST_PICTURE = (900, 1200)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The steps at which the phases of a run end.

    Attributes:
      calibrated: end of calibration.
      warm: end of the warm-up.
      total: end of the run.
    """

    calibrated: int
    warm: int
    total: int

    def phases(self) -> list[tuple[str, int, int]]:
        """Returns (name, first step, last step) of each phase that has steps."""
        ends = 0, self.calibrated, self.warm, self.total
        spans = zip(_PHASE_COLOURS, ends[:-1], ends[1:], strict=True)
        return [(name, start, end) for name, start, end in spans if end > start]


def progress(history: History, schedule: Schedule, teacher_top1: float | None) -> Drawing:
    """Draws top-1 (where it was measured) and agreement over the steps, and health below them."""
    figure = blank(4.2)
    axes, below = figure.subplots(2, height_ratios=(3, 1), sharex=True)
    alt = []
    for name, label, colour, panel, scale in (
        ("top1", "student, top-1", BLUE, axes, 100),
        ("agreement", "agreement on generated images", ORANGE, axes, 100),
        ("health", "health, without data", GREEN, below, 1),
    ):
        steps, values = history.evaluated(name)
        if np.isfinite(values).any():
            panel.plot(steps, scale * values, "o-", color=colour, label=label, markersize=3)
            unit = ", in percent" if scale == 100 else ", from 0 to 1"
            alt.append(_ends(f"{label}{unit}", steps, scale * values))
    if teacher_top1 is not None:
        axes.axhline(100 * teacher_top1, color=GREY, linestyle="--", label="teacher, top-1")
        alt.append(f"The teacher's top-1 is {teacher_top1:.2%}.")
    axes.set_ylabel("percent")
    below.set_ylabel("health")
    _over_steps(axes, schedule)
    axes.set_xlabel("")
    _over_steps(below, schedule, small=True)
    below.set_xlabel("step")
    if alt:
        figure.legend(loc="outside upper center", ncols=2, fontsize=7)
    title = "Top-1, agreement and health"
    if not np.isfinite(history.evaluated("top1")[1]).any():
        title = "Agreement and health (accuracy not measured)"
    return drawn("progress", title, " ".join(alt) or "No evaluation was logged.", figure)


def losses(history: History, schedule: Schedule) -> Drawing:
    """Draws every logged loss over the steps, one panel for each."""
    known = [name for name in _LOSSES if name in history.curves]
    rows = max(1, -(-len(known) // 2))
    figure = blank(1.6 * rows + 0.6)
    alt = []
    for place, name in enumerate(known, start=1):
        axes = figure.add_subplot(rows, 2, place)
        axes.set_title(_LOSSES[name], fontsize=9)
        steps, values = history.curves[name]
        axes.plot(steps, values, color=BLUE, linewidth=1)
        _over_steps(axes, schedule, small=True)
        alt.append(_ends(_LOSSES[name], steps, values))
    phases = [
        Patch(facecolor=_PHASE_COLOURS[name], edgecolor=GREY, label=name)
        for name, _, _ in schedule.phases()
    ]
    figure.legend(handles=phases, loc="outside lower center", ncols=3, fontsize=8)
    return drawn("losses", "Losses", " ".join(alt) or "No loss was logged.", figure)


def h_prime(
    history: History, schedule: Schedule, lambda_l: float | None, lambda_u: float | None
) -> Drawing:
    """Draws the mean H' of the training batches over the steps, and the margin."""
    figure, axes = one_panel(2.9)
    alt = "H' was not logged."
    if "h_prime" in history.curves:
        steps, values = history.curves["h_prime"]
        axes.plot(steps, values, color=BLUE, linewidth=1.2)
        alt = _ends("mean H' of the training batches", steps, values)
    for value, name in ((lambda_l, "λ_l"), (lambda_u, "λ_u")):
        if value is not None:
            axes.axhline(value, color=ORANGE, linestyle="--")
            axes.annotate(
                f"{name} = {value:g}",
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-3, 3),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("H': 0 disagree, 1 agree")
    _over_steps(axes, schedule)
    return drawn("h_prime", "H' over training", f"{alt} {_margin(lambda_l, lambda_u)}", figure)


def h_prime_histogram(
    history: History, answers: Answers, lambda_l: float | None, lambda_u: float | None
) -> Drawing:
    """Draws histograms of H' of held-out images: at the first evaluation, half-way, and now."""
    logged = [
        (f"step {record['step']}", np.array(record["h_prime_histogram"]))
        for record in history.evaluations[:-1]
        if record["h_prime_histogram"]
    ]
    moments = [logged[0]] if logged else []
    if len(logged) > 2:
        moments.append(logged[len(logged) // 2])
    moments.append(("now", np.array(answers.histogram())))

    figure = blank(1.1 * len(moments) + 0.9)
    alt = f"Histograms of H' of {len(answers.h_prime)} held-out generated images. "
    panels = figure.subplots(len(moments), sharex=True, squeeze=False).ravel()
    for axes, (name, counts) in zip(panels, moments, strict=True):
        edges = np.linspace(0, 1, len(counts) + 1)
        axes.bar(edges[:-1], counts, width=edges[1], align="edge", color=BLUE)
        for value in (lambda_l, lambda_u):
            if value is not None:
                axes.axvline(value, color=ORANGE, linestyle="--")
        axes.set_title(name, fontsize=8, loc="left")
        axes.tick_params(labelsize=8)
        mean = np.average(edges[:-1] + edges[1] / 2, weights=counts) if counts.any() else np.nan
        alt += f"{name[0].upper()}{name[1:]} the mean is {mean:.2f}. "
    panels[-1].set_xlim(0, 1)
    panels[-1].set_xlabel("H': 0 disagree, 1 agree")
    figure.supylabel("held-out images", fontsize=9)
    return drawn(
        "h_prime_histogram",
        "H' of held-out images: early, half-way, now",
        alt + _margin(lambda_l, lambda_u),
        figure,
    )


def generalisation(history: History) -> Drawing:
    """Draws the student's loss on generated images, and on real ones where there are any."""
    figure, axes = one_panel(2.6)
    alt = []
    for name, label, colour in (
        ("held_out_loss", "generated images", ORANGE),
        ("loss", "evaluation images", BLUE),
    ):
        steps, values = history.evaluated(name)
        if np.isfinite(values).any():
            axes.plot(steps, values, "o-", color=colour, label=label, markersize=3)
            alt.append(_ends(f"cross entropy on {label}", steps, values))
    axes.set_xlabel("step")
    axes.set_ylabel("cross entropy")
    if alt:
        axes.legend(fontsize=8)
    return drawn(
        "generalisation",
        "The student's loss on generated and real images",
        " ".join(alt) or "No loss was measured.",
        figure,
    )


def generated(images: np.ndarray, labels: np.ndarray, mean, std) -> Drawing:
    """Draws held-out images, a row for each of the first classes.

    Args:
      images: (N, H, W, 3), normalised.
      labels: (N,) classes that the images were made for.
      mean, std: the normalisation, per channel of pixels in [0, 1].
    """
    shown = labels < _MOST_CLASSES
    classes = len(np.unique(labels[shown]))
    return Drawing(
        "samples",
        "Generated images, now",
        f"Held-out images of the generator, {classes} labelled rows of one class each.",
        _small_enough(draw_grid(images[shown], labels[shown], mean, std)),
    )


def over_time(pictures: Sequence[tuple[int, bytes]]) -> Drawing | None:
    """Joins the pictures that a run drew during training; None where there are none.

    Args:
      pictures: (step, PNG), in order.
    """
    if not pictures:
        return None
    count = min(len(pictures), _MOST_MOMENTS)
    places = np.linspace(0, len(pictures) - 1, count).round().astype(int)
    pictures = [pictures[place] for place in places]
    steps = ", ".join(str(step) for step, _ in pictures)
    return Drawing(
        "samples_over_time",
        "Generated images over time",
        f"Images of the generator from the same noise after steps {steps}, one row for each class.",
        _small_enough(side_by_side([(f"step {step}", png) for step, png in pictures])),
    )


def _small_enough(png: bytes) -> bytes:
    picture = Image.open(io.BytesIO(png))
    if picture.width <= _LARGEST_PICTURE[0] and picture.height <= _LARGEST_PICTURE[1]:
        return png
    picture.thumbnail(_LARGEST_PICTURE)
    return to_png(picture)


def agreement(answers: Answers) -> Drawing:
    """Draws the agreement of teacher and student by class."""
    images, recognised, agreed = answers.per_class()
    figure, axes = one_panel(2.9)
    places = np.arange(answers.classes)
    shares = []
    for counts, label, colour, offset in (
        (agreed, "student agrees with the teacher", BLUE, -0.2),
        (recognised, "teacher sees the intended class", LIGHT_BLUE, 0.2),
    ):
        share = 100 * counts / np.maximum(images, 1)
        axes.bar(places + offset, share, 0.4, color=colour, label=label)
        shares.append(np.where(images > 0, share, np.nan))
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("class that the images were made for")
    axes.set_ylabel("percent of its images")
    figure.legend(loc="outside upper center", fontsize=8)
    worst, best = int(np.nanargmin(shares[0])), int(np.nanargmax(shares[0]))
    return drawn(
        "agreement",
        "Agreement by class",
        f"Teacher and student agree least on class {worst} ({shares[0][worst]:.0f} percent of "
        f"{images[worst]:.0f} images) and most on class {best} ({shares[0][best]:.0f} percent); "
        f"{answers.agreement:.1%} over all.",
        figure,
    )


def _over_steps(axes: Axes, schedule: Schedule, small: bool = False) -> None:
    """Sets up a horizontal axis of steps with the phases as background; `small` omits names."""
    for name, start, end in schedule.phases():
        axes.axvspan(start, end, color=_PHASE_COLOURS[name], zorder=0, linewidth=0)
        if not small:
            axes.annotate(
                name,
                ((start + end) / 2, 0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                color=GREY,
                rotation=90 if end - start < 0.2 * schedule.total else 0,
            )
    axes.set_xlim(0, schedule.total)
    axes.tick_params(labelsize=7 if small else 8)
    axes.xaxis.get_major_locator().set_params(nbins=3 if small else 6, integer=True)
    if not small:
        axes.set_xlabel("step")


def _ends(what: str, steps: np.ndarray, values: np.ndarray) -> str:
    """Describes a curve in one sentence, by its first and last values."""
    finite = np.isfinite(values)
    if not finite.any():
        return f"{what[0].upper()}{what[1:]}: never finite."
    steps, values = steps[finite], values[finite]
    gaps = "" if finite.all() else " Some values are not finite."
    return (
        f"{what[0].upper()}{what[1:]}: {values[0]:.4g} at step {steps[0]:.0f}, "
        f"{values[-1]:.4g} at step {steps[-1]:.0f}.{gaps}"
    )


def _margin(lambda_l: float | None, lambda_u: float | None) -> str:
    if lambda_l is None or lambda_u is None:
        return "The method has no margin."
    return f"The margin is {lambda_l:g} to {lambda_u:g}, drawn as dashed lines."
