"""The figure of an allocation: the best that any budget buys, and uniform bit-widths beside it."""

from collections.abc import Mapping
from typing import Any

from adadfq_jax.reporting.drawing import BLUE, GREY, ORANGE, Drawing, drawn, one_panel

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
      The figure; None where a person wrote the file and it has no such points.
    """
    if not {"measure", "curve", "uniform", "level", "distance"} <= about.keys():
        return None
    chosen = about["level"], about["distance"]
    uniform = {int(bits): point for bits, point in about["uniform"].items()}
    figure, axes = one_panel(3.0)
    axes.plot(
        *zip(*about["curve"], strict=True), "-", color=BLUE, label="best choices (Pareto front)"
    )
    points = list(uniform.values())
    axes.plot(*zip(*points, strict=True), "o", color=GREY, markersize=4, label="uniform bits")
    for bits, point in uniform.items():
        axes.annotate(f"{bits}", point, (4, 3), textcoords="offset points", fontsize=7)
    axes.plot(*chosen, "D", color=ORANGE, markersize=6, label="chosen")
    axes.set_yscale("log")
    axes.set_xlabel(_AXES[about["measure"]], fontsize=8)
    axes.set_ylabel("sum of distances", fontsize=8)
    axes.legend(fontsize=7)
    words = [f"uniform at {bits} bits: {distance:.3g}" for bits, (_, distance) in uniform.items()]
    alt = f"Sum of distances, chosen at {chosen[0]:.2f} bits: {chosen[1]:.3g}; {'; '.join(words)}."
    return drawn("allocation", "Predicted distance over cost", alt, figure)
