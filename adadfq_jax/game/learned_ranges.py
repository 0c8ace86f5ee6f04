"""Quantization ranges that the student learns by gradient: where they start, which ends move."""

from typing import Any

import jax
import jax.numpy as jnp

from adadfq_jax.game.state import Player
from adadfq_jax.models.layers import leaves_by_layer
from adadfq_jax.quantization.ranges import WEIGHT_RANGE_RULES


def with_kernel_ranges(ranges: Any, params: Any, bits: Any, rule: str) -> Any:
    """Adds a starting range for every kernel to the ranges of the activations.

    Args:
      ranges: the `ranges` collection, of activations.
      params: the student's collection `params`.
      bits: the student's collection `bits`.
      rule: name in `ranges.WEIGHT_RANGE_RULES`.
    """
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
    """Returns the ends that are learned, as the collection `clipping`.

    A kernel's range has two learned ends; an activation's only the upper one: the lower one is 0
    after a ReLU, and stays as calibrated after other functions.
    """
    if "maximum" not in ranges:
        return {name: learned_ends(below) for name, below in ranges.items()}
    learned = ("maximum",) if "updates" in ranges else ("minimum", "maximum")
    return {name: ranges[name] for name in learned}


def with_ends(ranges: Any, ends: Any) -> Any:
    """Returns the collection `ranges` with the ends of a collection `clipping` put in."""
    if "maximum" in ranges:
        return ranges | ends
    return {name: with_ends(ranges[name], ends[name]) for name in ranges}


def current_ranges(ranges: Any, student: Player) -> Any:
    """Returns the ranges that Q quantizes with: the calibrated ones, with learned ends put in."""
    learnt = student.params.get("clipping")
    return ranges if learnt is None else with_ends(ranges, learnt)


def mean_width(ranges: Any) -> jax.Array:
    """Returns maximum - minimum of the activation ranges, averaged over the layers; a scalar."""
    widths = leaves_by_layer(
        ranges, lambda layer: layer["maximum"] - layer["minimum"] if "updates" in layer else None
    )
    return jnp.stack([width for width in widths if width is not None]).mean()
