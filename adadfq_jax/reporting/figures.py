"""The figures of a report: PNG files with the words for those who do not see them."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from adadfq_jax import samples
from adadfq_jax.health import Answers
from adadfq_jax.reporting.history import History
from adadfq_jax.reporting.layers import QuantizedActivation, QuantizedWeight

# Drawn as wide as a phone shows it, so that its letters stay readable there.
_WIDTH, _RESOLUTION = 4.6, 160
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#c8590a", "#666666"
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
_LARGEST_PICTURE = (900, 1200)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
      name: of its file, without suffix.
      title: heading.
      alt: what it shows, in words.
      png: the file.
    """

    name: str
    title: str
    alt: str
    png: bytes


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Where phases end, in steps: of calibration, of the warm-up, of the whole."""

    calibrated: int
    warm: int
    total: int

    def phases(self) -> list[tuple[str, int, int]]:
        """Returns (name, first step, last step) of the phases that have any."""
        ends = 0, self.calibrated, self.warm, self.total
        spans = zip(_PHASE_COLOURS, ends[:-1], ends[1:], strict=True)
        return [(name, start, end) for name, start, end in spans if end > start]


def progress(history: History, schedule: Schedule, teacher_top1: float | None) -> Drawing:
    """Draws top-1, where it was measured, and agreement over the steps."""
    figure, axes = _one_panel(2.9)
    steps = [record["step"] for record in history.evaluations]
    alt = []
    for name, label, colour in (
        ("top1", "student, top-1", _BLUE),
        ("agreement", "agreement on generated images", _ORANGE),
    ):
        values = [record[name] for record in history.evaluations]
        numbers = np.array([np.nan if value is None else value for value in values], float)
        if np.isfinite(numbers).any():
            axes.plot(steps, 100 * numbers, "o-", color=colour, label=label, markersize=3)
            alt.append(_ends(f"{label}, in percent", np.array(steps), 100 * numbers))
    if teacher_top1 is not None:
        axes.axhline(100 * teacher_top1, color=_GREY, linestyle="--", label="teacher, top-1")
        alt.append(f"The teacher's top-1 is {teacher_top1:.2%}.")
    axes.set_ylabel("percent")
    _over_steps(axes, schedule)
    if alt:
        axes.legend(loc="best", fontsize=8)
    measured = any(record["top1"] is not None for record in history.evaluations)
    title = "Top-1 and agreement" if measured else "Agreement (accuracy not measured)"
    return _drawn("progress", title, " ".join(alt) or "No evaluation was logged.", figure)


def losses(history: History, schedule: Schedule) -> Drawing:
    """Draws every logged loss over the steps, each on a scale of its own."""
    known = [name for name in _LOSSES if name in history.curves]
    rows = max(1, -(-len(known) // 2))
    figure = _figure(1.6 * rows + 0.6)
    alt = []
    for place, name in enumerate(known, start=1):
        axes = figure.add_subplot(rows, 2, place)
        axes.set_title(_LOSSES[name], fontsize=9)
        steps, values = history.curves[name]
        axes.plot(steps, values, color=_BLUE, linewidth=1)
        _over_steps(axes, schedule, small=True)
        alt.append(_ends(_LOSSES[name], steps, values))
    phases = [
        Patch(facecolor=_PHASE_COLOURS[name], edgecolor=_GREY, label=name)
        for name, _, _ in schedule.phases()
    ]
    figure.legend(handles=phases, loc="outside lower center", ncols=3, fontsize=8)
    return _drawn("losses", "Losses", " ".join(alt) or "No loss was logged.", figure)


def h_prime(
    history: History, schedule: Schedule, lambda_l: float | None, lambda_u: float | None
) -> Drawing:
    """Draws the mean H' of the training batches over the steps, and the margin."""
    figure, axes = _one_panel(2.9)
    alt = "H' was not logged."
    if "h_prime" in history.curves:
        steps, values = history.curves["h_prime"]
        axes.plot(steps, values, color=_BLUE, linewidth=1.2)
        alt = _ends("mean H' of the training batches", steps, values)
    for value, name in ((lambda_l, "λ_l"), (lambda_u, "λ_u")):
        if value is not None:
            axes.axhline(value, color=_ORANGE, linestyle="--")
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
    return _drawn("h_prime", "H' over training", f"{alt} {_margin(lambda_l, lambda_u)}", figure)


def h_prime_histogram(answers: Answers, lambda_l: float | None, lambda_u: float | None) -> Drawing:
    """Draws how H' of held-out images is spread at the end."""
    figure, axes = _one_panel(2.9)
    values = answers.h_prime[np.isfinite(answers.h_prime)]
    axes.hist(values, bins=np.linspace(0, 1, 26), color=_BLUE)
    for value in (lambda_l, lambda_u):
        if value is not None:
            axes.axvline(value, color=_ORANGE, linestyle="--")
    axes.set_xlim(0, 1)
    axes.set_xlabel("H': 0 disagree, 1 agree")
    axes.set_ylabel("held-out images")
    alt = f"Histogram of H' of {len(values)} held-out generated images. "
    if len(values):
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        alt += f"The median is {middle:.2f}; half of them lie between {low:.2f} and {high:.2f}. "
    return _drawn(
        "h_prime_histogram",
        "H' of held-out images at the end",
        alt + _margin(lambda_l, lambda_u),
        figure,
    )


def generated(images: np.ndarray, labels: np.ndarray, mean, std) -> Drawing:
    """Draws held-out images, a row for each of the first classes.

    Args:
      images: (N, H, W, 3), normalised.
      labels: (N,) the classes that they were made for.
      mean, std: the normalisation, per channel of pixels in [0, 1].
    """
    shown = labels < _MOST_CLASSES
    png = samples.grid(images[shown], labels[shown], mean, std)
    picture = Image.open(io.BytesIO(png))
    if picture.width > _LARGEST_PICTURE[0] or picture.height > _LARGEST_PICTURE[1]:
        picture.thumbnail(_LARGEST_PICTURE)
        file = io.BytesIO()
        picture.save(file, "PNG")
        png = file.getvalue()
    classes = len(np.unique(labels[shown]))
    return Drawing(
        "samples",
        "Generated images",
        f"Held-out images of the generator, {classes} labelled rows of one class each.",
        png,
    )


def agreement(answers: Answers) -> Drawing:
    """Draws teacher and student's agreement by class."""
    images, recognised, agreed = answers.per_class()
    figure, axes = _one_panel(2.9)
    places = np.arange(answers.classes)
    shares = []
    for counts, label, colour, offset in (
        (agreed, "student agrees with the teacher", _BLUE, -0.2),
        (recognised, "teacher sees the intended class", "#9db8d9", 0.2),
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
    return _drawn(
        "agreement",
        "Agreement by class",
        f"Teacher and student agree least on class {worst} ({shares[0][worst]:.0f} percent of "
        f"{images[worst]:.0f} images) and most on class {best} ({shares[0][best]:.0f} percent); "
        f"{answers.agreement:.1%} over all.",
        figure,
    )


def sqnr(kind: str, layers: Sequence[QuantizedWeight | QuantizedActivation]) -> Drawing:
    """Draws the quantization error of every layer.

    Args:
      kind: "weight" or "activation".
      layers: in the network's order.
    """
    figure, axes = _one_panel(0.17 * len(layers) + 0.8)
    values = np.array([layer.sqnr for layer in layers])
    # Without error, the bar would have no end; without a value, it has no length.
    drawn = np.where(np.isfinite(values), values, 0)
    axes.barh(np.arange(len(layers)), drawn, color=_BLUE)
    axes.set_yticks(
        np.arange(len(layers)), [f"{layer.name} ({layer.bits} bit)" for layer in layers], fontsize=7
    )
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlabel("SQNR in dB: more is better")
    alt = f"Signal to quantization noise of the {kind}s of {len(layers)} layers. "
    if np.isfinite(values).any():
        finite = [layer for layer in layers if np.isfinite(layer.sqnr)]
        low = min(finite, key=lambda layer: layer.sqnr)
        high = max(finite, key=lambda layer: layer.sqnr)
        alt += (
            f"The lowest is {low.name} with {low.sqnr:.1f} dB, the highest {high.name} with "
            f"{high.sqnr:.1f} dB."
        )
    title = f"Quantization error of {kind}s"
    return _drawn(f"{kind}_sqnr", title, alt, figure)


def _figure(height: float) -> Figure:
    figure = Figure(figsize=(_WIDTH, height), dpi=_RESOLUTION, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _one_panel(height: float) -> tuple[Figure, Axes]:
    figure = _figure(height)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    return figure, axes


def _drawn(name: str, title: str, alt: str, figure: Figure) -> Drawing:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Drawing(name, title, alt.strip(), file.getvalue())


def _over_steps(axes: Axes, schedule: Schedule, small: bool = False) -> None:
    """Puts steps on the horizontal axis, with the phases behind; small panels have no names."""
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
                color=_GREY,
                rotation=90 if end - start < 0.2 * schedule.total else 0,
            )
    axes.set_xlim(0, schedule.total)
    axes.tick_params(labelsize=7 if small else 8)
    axes.xaxis.get_major_locator().set_params(nbins=3 if small else 6, integer=True)
    if not small:
        axes.set_xlabel("step")


def _ends(what: str, steps: np.ndarray, values: np.ndarray) -> str:
    """Tells a curve in one sentence."""
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
