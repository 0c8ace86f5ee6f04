"""Figures of a run's report: errors and costs of layers, coverage of images."""

from collections.abc import Sequence

import numpy as np

from adadfq_jax.reporting.diagnosis import Coverage, LayerCost
from adadfq_jax.reporting.drawing import BLUE, GREEN, GREY, ORANGE, Drawing, blank, drawn, one_panel
from adadfq_jax.reporting.layer_errors import QuantizedActivation, QuantizedWeight

_SHORTEST_AXIS = 5  # percent
_FAMILIES = (ORANGE, BLUE, GREEN, GREY)


def sqnr(kind: str, layers: Sequence[QuantizedWeight | QuantizedActivation]) -> Drawing:
    """Draws the quantization error of every layer.

    Args:
      kind: "weight" or "activation".
      layers: the layers, in the network's order.
    """
    figure, axes = one_panel(0.17 * len(layers) + 0.8)
    values = np.array([layer.sqnr for layer in layers])
    # An infinite or missing value is drawn as a bar of no length.
    lengths = np.where(np.isfinite(values), values, 0)
    axes.barh(np.arange(len(layers)), lengths, color=BLUE)
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
    return drawn(f"{kind}_sqnr", title, alt, figure)


def layer_costs(costs: Sequence[LayerCost]) -> Drawing:
    """Draws the cost of every layer's bits; `costs` are in the network's order.

    A bar that is much longer to the left than any is to the right is cut, and its number stands
    at its end, because it would leave no room for the others.
    """
    figure, axes = one_panel(0.17 * len(costs) + 1.0)
    places = np.arange(len(costs))
    percents = np.array([100 * layer.cost for layer in costs])
    least = -max(percents.max(initial=0), _SHORTEST_AXIS)
    for kind, colour in (("activation", BLUE), ("weight", ORANGE)):
        chosen = [place for place, layer in enumerate(costs) if layer.kind == kind]
        axes.barh(chosen, np.maximum(percents[chosen], least), color=colour, label=kind)
    for place in np.flatnonzero(percents < least):
        text = f" ◂ {percents[place]:.0f} %"
        axes.annotate(text, (least, place), va="center", fontsize=7, color="white")
    axes.set_yticks(places, [f"{layer.name} ({layer.bits} bit)" for layer in costs], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_xlabel("percent of the distance that 16 bits remove", fontsize=8)
    figure.legend(loc="outside upper center", ncols=2, fontsize=8)
    alt = "What the bits of each layer cost."
    if costs:
        most = sorted(costs, key=lambda layer: -layer.cost)[:3]
        named = ", ".join(f"{layer.kind} of {layer.name} {layer.cost:.0%}" for layer in most)
        kinds = {
            kind: sum(layer.cost for layer in costs if layer.kind == kind)
            for kind in ("activation", "weight")
        }
        alt += (
            f" Most: {named}. All activations, one at a time, add up to "
            f"{kinds['activation']:.0%}, all weights to {kinds['weight']:.0%}."
        )
    return drawn("layer_costs", "What each layer's bits cost", alt, figure)


def coverage(families: Sequence[Coverage]) -> Drawing:
    """Draws how similar kinds of images are to the training data: by layer, and by confidence."""
    figure = blank(4.6)
    by_layer, by_confidence = figure.subplots(2)
    alt = []
    for family, colour in zip(families, _FAMILIES, strict=False):
        layers = np.arange(1, len(family.distances) + 1)
        by_layer.plot(layers, family.distances, "o-", color=colour, markersize=3, label=family.name)
        shares = np.linspace(0, 100, len(family.confidence))
        by_confidence.plot(np.sort(family.confidence), shares, color=colour)
        alt.append(
            f"{family.name[0].upper()}{family.name[1:]}: {family.distances.mean():.3g} nats from "
            f"the training data's statistics in the mean over the layers, median confidence "
            f"{np.median(family.confidence):.2f}, {family.classes:.0%} of the classes."
        )
    by_layer.set_yscale("log")
    by_layer.set_xlabel("BatchNorm layer, from the first to the last", fontsize=8)
    by_layer.set_ylabel("distance in nats", fontsize=8)
    by_confidence.set_xlabel("the teacher's confidence", fontsize=8)
    by_confidence.set_ylabel("percent of images below", fontsize=8)
    for axes in (by_layer, by_confidence):
        axes.tick_params(which="both", labelsize=7)
    by_layer.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper center", ncols=3, fontsize=7)
    return drawn("coverage", "What the images cover", " ".join(alt), figure)
