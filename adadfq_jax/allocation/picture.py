"""The picture of an allocation: the best that any budget buys, and uniform bit-widths beside it."""

from adadfq_jax.allocation.chosen import Allocation
from adadfq_jax.reporting.drawing import BLUE, GREY, ORANGE, Drawing, drawn, one_panel

_AXES = {
    "size": "average bits",
    "bitops": "bits of the uniform student with as many bit operations",
}


def draw_curve(found: Allocation) -> Drawing:
    """Draws the sum of distances over the level of the bit-widths, with the choice marked.

    Args:
      found: the allocation.
    """
    figure, axes = one_panel(3.0)
    axes.plot(*zip(*found.curve, strict=True), "-", color=BLUE, label="best choices (Pareto front)")
    uniform = {bits: found.uniform(bits) for bits in found.choices}
    points = [(found.level_of(bits), found.predicted(bits)) for bits in uniform.values()]
    axes.plot(*zip(*points, strict=True), "o", color=GREY, markersize=4, label="uniform bits")
    for name, point in zip(uniform, points, strict=True):
        axes.annotate(f"{name}", point, (4, 3), textcoords="offset points", fontsize=7)
    chosen = found.level_of(found.bits), found.predicted(found.bits)
    axes.plot(*chosen, "D", color=ORANGE, markersize=6, label="chosen")
    axes.set_yscale("log")
    axes.set_xlabel(_AXES[found.budget.measure], fontsize=8)
    axes.set_ylabel("sum of distances, nats", fontsize=8)
    axes.legend(fontsize=7)
    words = [
        f"uniform at {name} bits: {distance:.3g}"
        for name, (_, distance) in zip(uniform, points, strict=True)
    ]
    alt = f"Sum of distances, chosen at {chosen[0]:.2f} bits: {chosen[1]:.3g}; {'; '.join(words)}."
    return drawn("allocation", "Predicted distance over cost", alt, figure)
