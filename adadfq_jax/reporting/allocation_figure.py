"""The figure of an allocation: the best that any budget buys, and uniform bit-widths beside it."""

import math
from collections.abc import Mapping
from typing import Any

from adadfq_jax.reporting.drawing import BLUE, GREY, ORANGE, Drawing, drawn, one_panel

Point = tuple[float, float]
_AXES = {
    "size": "average bits",
    "bitops": "bits of the uniform student with as many bit operations",
}


def draw_allocation(about: Mapping[str, Any]) -> Drawing | None:
    """Draws the sum of distances over the level of the bit-widths.

    Args:
      about: content of a file of bit-widths, or `Allocation.described`: `measure`, and points
        (level, sum of distances), which are `curve`, the best choices under any budget, `uniform`
        by bit-width, and `level` and `distance` of what was chosen.

    Returns:
      The figure; None where a person wrote or changed the file and it has no such points.
    """
    try:
        axis = _AXES[about["measure"]]
        curve = [_point(*point) for point in about["curve"]]
        uniform = {int(bits): _point(*point) for bits, point in about["uniform"].items()}
        chosen = _point(about["level"], about["distance"])
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    figure, axes = one_panel(3.0)
    for points, style, color, label in (
        (curve, "-", BLUE, "best choices (Pareto front)"),
        (list(uniform.values()), "o", GREY, "uniform bits"),
        ([chosen], "D", ORANGE, "chosen"),
    ):
        levels, distances = [level for level, _ in points], [distance for _, distance in points]
        axes.plot(levels, distances, style, color=color, markersize=5, label=label)
    for bits, point in uniform.items():
        axes.annotate(f"{bits}", point, (4, 3), textcoords="offset points", fontsize=7)
    axes.set_yscale("log")
    axes.set_xlabel(axis, fontsize=8)
    axes.set_ylabel("sum of distances", fontsize=8)
    axes.legend(fontsize=7)
    words = [f"uniform at {bits} bits: {distance:.3g}" for bits, (_, distance) in uniform.items()]
    alt = f"Sum of distances, chosen at {chosen[0]:.2f} bits: {chosen[1]:.3g}; {'; '.join(words)}."
    return drawn("allocation", "Predicted distance over cost", alt, figure)


def _point(level: Any, distance: Any) -> Point:
    """Returns a point as two numbers, finite and not negative as all that `allocate` measures.

    Raises:
      TypeError, ValueError, OverflowError: they are none.
    """
    level, distance = float(level), float(distance)
    if not (0 <= level < math.inf and 0 <= distance < math.inf):
        raise ValueError(f"({level}, {distance}) cannot be drawn")
    return level, distance
