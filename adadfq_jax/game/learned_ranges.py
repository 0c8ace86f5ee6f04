"""Ranges that the student learns: which of their ends, and where they stand."""

from typing import Any

import jax
import jax.numpy as jnp

from adadfq_jax.game.state import Player
from adadfq_jax.models.layers import leaves_by_layer
from adadfq_jax.quantization.ranges import WEIGHT_RANGE_RULES


def with_kernel_ranges(ranges: Any, params: Any, bits: Any, rule: str) -> Any:
    """Adds the ranges of all kernels, where learning begins; of `ranges.WEIGHT_RANGE_RULES`."""
    if "weight" in bits:
        ends = WEIGHT_RANGE_RULES[rule](params["kernel"], bits["weight"])
        return dict(zip(("minimum", "maximum"), ends, strict=True))
    return {
        name: ranges[name]
        if "activation" in below
        else with_kernel_ranges(ranges.get(name, {}), params[name], below, rule)
        for name, below in bits.items()
    }


def learned_ends(ranges: Any) -> Any:
    """Returns what can be learned of the ranges: the collection `clipping`.

    Of an activation the upper end alone, since the lower one of a ReLU is 0.
    """
    if "maximum" not in ranges:
        return {name: learned_ends(below) for name, below in ranges.items()}
    learned = ("maximum",) if "updates" in ranges else ("minimum", "maximum")
    return {name: ranges[name] for name in learned}


def with_ends(ranges: Any, ends: Any) -> Any:
    """Returns the ranges with other ends."""
    if "maximum" in ranges:
        return ranges | ends
    return {name: with_ends(ranges[name], ends[name]) for name in ranges}


def current_ranges(ranges: Any, student: Player) -> Any:
    """Returns the ranges that Q quantizes by: as calibrated, but for the ends that it learns."""
    learnt = student.params.get("clipping")
    return ranges if learnt is None else with_ends(ranges, learnt)


def mean_width(ranges: Any) -> jax.Array:
    """Returns the mean width of the activation ranges, over the layers."""
    widths = leaves_by_layer(
        ranges, lambda layer: layer["maximum"] - layer["minimum"] if "updates" in layer else None
    )
    return jnp.stack([width for width in widths if width is not None]).mean()
