"""The picture of an allocation: the best that any budget buys, and uniform bit-widths beside it."""

from collections.abc import Mapping, Sequence

from adadfq_jax.reporting.drawing import BLUE, GREY, ORANGE, Drawing, drawn, one_panel

_AXES = {
    "size": "average bits",
    "bitops": "bits of the uniform student with as many bit operations",
}
# (level, sum of distances), as `Allocation` has them.
Point = tuple[float, float]


def draw_curve(
    curve: Sequence[Point], uniform: Mapping[int, Point], chosen: Point, measure: str
) -> Drawing:
    """Draws the sum of distances over the level of the bit-widths.

    Args:
      curve: the best choices under any budget.
      uniform: by bit-width, where everything has it.
      chosen: what was chosen.
      measure: of the budget, `size` or `bitops`.
    """
    figure, axes = one_panel(3.0)
    axes.plot(*zip(*curve, strict=True), "-", color=BLUE, label="best choices (Pareto front)")
    points = list(uniform.values())
    axes.plot(*zip(*points, strict=True), "o", color=GREY, markersize=4, label="uniform bits")
    for bits, point in uniform.items():
        axes.annotate(f"{bits}", point, (4, 3), textcoords="offset points", fontsize=7)
    axes.plot(*chosen, "D", color=ORANGE, markersize=6, label="chosen")
    axes.set_yscale("log")
    axes.set_xlabel(_AXES[measure], fontsize=8)
    axes.set_ylabel("sum of distances", fontsize=8)
    axes.legend(fontsize=7)
    words = [f"uniform at {bits} bits: {distance:.3g}" for bits, (_, distance) in uniform.items()]
    alt = f"Sum of distances, chosen at {chosen[0]:.2f} bits: {chosen[1]:.3g}; {'; '.join(words)}."
    return drawn("allocation", "Predicted distance over cost", alt, figure)
