"""Figures of a run's report by class: where the student answers otherwise, and what it learned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adadfq_jax.reporting.drawing import BLUE, LIGHT_BLUE, Drawing, drawn, one_panel

_MOST_CLASSES = 16  # that a figure shows
_LONGEST_NAME = 12


def confusion(
    teacher: np.ndarray,
    student: np.ndarray,
    classes: int,
    what: str,
    names: Sequence[str] | None = None,
) -> Drawing:
    """Draws how often the student gives an image another class than the teacher.

    Args:
      teacher, student: (N,) classes that the networks give the same images.
      classes: number of classes C; of more than 16, those are shown that differ most.
      what: the images, in words.
      names: names of the classes; None for their numbers.
    """
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (teacher, student), 1)
    different = counts - np.diag(np.diag(counts))
    involved = different.sum(0) + different.sum(1)
    shown = np.sort(np.argsort(-involved, kind="stable")[:_MOST_CLASSES])
    figure, axes = one_panel(3.9)
    # The diagonal holds most images, and would take all of the colours.
    part = different[np.ix_(shown, shown)]
    axes.imshow(np.where(np.eye(len(shown)), np.nan, part), cmap="Oranges", vmin=0)
    for (row, column), count in np.ndenumerate(counts[np.ix_(shown, shown)]):
        if count:
            dark = row != column and count > part.max() / 2
            colour = "white" if dark else "#888888" if row == column else "black"
            axes.annotate(
                str(count), (column, row), ha="center", va="center", fontsize=6, color=colour
            )
    labels = [_name(place, names) for place in shown]
    axes.set_xticks(range(len(shown)), labels, fontsize=7, rotation=90 if names else 0)
    axes.set_yticks(range(len(shown)), labels, fontsize=7)
    axes.set_xlabel("class by the student", fontsize=8)
    axes.set_ylabel("class by the teacher", fontsize=8)
    total = int(different.sum())
    alt = f"Teacher and student give {total} of {what} different classes"
    if total:
        given, answered = np.unravel_index(different.argmax(), different.shape)
        alt += (
            f", most often {_name(given, names)} by the teacher and {_name(answered, names)} by "
            f"the student ({different[given, answered]} images)"
        )
    if classes > _MOST_CLASSES:
        alt += f"; shown are the {len(shown)} classes of {classes} that differ most"
    return drawn("confusion", "Where teacher and student differ", f"{alt}.", figure)


def per_class(
    evaluations: Sequence[Mapping[str, Any]], warm: int, names: Sequence[str] | None = None
) -> Drawing | None:
    """Draws top-1 by class before and after training; None where it was not measured.

    Args:
      evaluations: records of a run's log.
      warm: the step before the student learned.
      names: names of the classes; None for their numbers.
    """
    measured = [record for record in evaluations if record["class_top1"]]
    if not measured:
        return None
    after = _shares(measured[-1])
    first = measured[0]
    before = _shares(first) if first["step"] == warm < measured[-1]["step"] else None
    change = after if before is None else after - before
    order = np.argsort(-np.abs(np.nan_to_num(change)), kind="stable")[:_MOST_CLASSES]
    shown = np.sort(order)
    figure, axes = one_panel(0.3 * len(shown) + 1.0)
    places = np.arange(len(shown))
    if before is not None:
        axes.barh(places - 0.2, before[shown], 0.4, color=LIGHT_BLUE, label="before training")
    axes.barh(places + 0.2, after[shown], 0.4, color=BLUE, label="after training")
    axes.set_yticks(places, [_name(place, names) for place in shown], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("top-1 in percent", fontsize=8)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    worst = int(np.nanargmin(after))
    alt = f"Top-1 by class: the lowest is {_name(worst, names)} with {after[worst]:.1f} percent"
    if before is not None:
        most = int(np.nanargmax(change))
        alt += (
            f"; {_name(most, names)} gained most, from {before[most]:.1f} to {after[most]:.1f} "
            "percent"
        )
    if len(after) > _MOST_CLASSES:
        alt += f"; shown are the {len(shown)} classes of {len(after)} that changed most"
    return drawn("per_class", "Top-1 by class, before and after training", f"{alt}.", figure)


def _shares(record: Mapping[str, Any]) -> np.ndarray:
    return 100 * np.array([np.nan if share is None else share for share in record["class_top1"]])


def _name(place: int, names: Sequence[str] | None) -> str:
    if names is None:
        return str(place)
    name = names[place]
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
