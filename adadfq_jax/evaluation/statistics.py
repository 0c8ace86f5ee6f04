"""Checks without data whether a teacher was read as the network that was trained.

A network that differs from the trained one (in strides, padding, or the normalisation of images)
gives its BatchNorms other inputs than in training. Procedural images are near enough to photographs
to show that. The measure is the Kullback-Leibler divergence, between normal distributions, of a
BatchNorm's input from its stored statistics, mean over the channels and over the BatchNorms, in
nats.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.errors import TeacherError
from adadfq_jax.game import procedural
from adadfq_jax.models.layers import apply_with_moments, stored_statistics
from adadfq_jax.models.network import Network
from adadfq_jax.ops.moments import unite_moments

# Of eight networks that were read correctly, six are below it (0.029 to 0.070) and two just above
# (0.118, and 0.119 for the built-in grey digits). Of 37 wrong readings, 31 are above it; the six
# below are presets near the right one, and 2x2 averages in shortcuts. See configs/RESULTS.md.
LARGEST_USUAL_DISTANCE = 0.1

_SEED = 20
# Pixels of all images, and bounds of their number: some seconds' work for any network.
_PIXELS, _FEWEST, _MOST = 2**19, 2, 64
_SMALLEST_VARIANCE = 1e-12
# Logits that differ less than this between images, relative to the largest, do not depend on them.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class StatisticsCheck:
    """How far procedural images are from a teacher's training data.

    Attributes:
      distance: divergence in nats, mean over the BatchNorms.
    """

    distance: float

    @property
    def unusual(self) -> bool:
        """Whether the distance is larger than usual for a network that was read correctly."""
        return not self.distance <= LARGEST_USUAL_DISTANCE

    @property
    def sentence(self) -> str:
        """The distance and what it suggests, in words."""
        said = (
            f"more than the usual {LARGEST_USUAL_DISTANCE:g}: check mean, std, pixel units and the "
            "architecture (strides, shortcuts)"
            if self.unusual
            else "as usual, which does not tell neighbouring presets apart"
        )
        return (
            f"procedural images are {self.distance:.3f} nats from the BatchNorms' statistics, "
            f"{said}"
        )

    def to_text(self) -> str:
        """Returns one line for a person, marked as a warning where it is one."""
        return f"warning: {self.sentence}" if self.unusual else self.sentence


def check_statistics(teacher: Network) -> StatisticsCheck:
    """Compares a teacher's stored statistics with those of procedural images.

    The check warns of most mistakes in architecture and normalisation, but a small distance proves
    nothing: it does not separate similar presets of mean and std (0.034 against 0.036 nats for a
    ResNet-20 of CIFAR-10).

    Args:
      teacher: the network in full precision.

    Returns:
      The distance; always the same for the same teacher.

    Raises:
      TeacherError: the logits are not finite, or the same for all images, so that a student could
        learn nothing from them.
    """
    size = teacher.image_size
    count = min(max(_PIXELS // size**2, _FEWEST), _MOST)
    drawn = procedural.draw(
        jax.random.key(_SEED), jnp.arange(count), size, tuple(teacher.mean), tuple(teacher.std)
    )
    logits, moments = apply_for_moments(teacher.module, teacher.on_device, drawn)
    _require_answers(np.asarray(logits))
    # With a leading axis of batches, here one.
    united = [tuple(np.asarray(value)[None] for value in each) for each in moments]
    return StatisticsCheck(float(np.mean(divergences(teacher, united))))


def divergences(network: Network, moments: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns how far the inputs of BatchNorms are from their stored statistics, in nats.

    Args:
      network: a network in full precision.
      moments: for each BatchNorm, (means, variances) of its input in batches of equal size, each
        (batches, channels), in the order of `stored_statistics`.

    Returns:
      (L,): the divergence for each of L BatchNorms, mean over its channels.
    """
    found = []
    for seen, (mean, variance) in zip(moments, stored_statistics(network.variables), strict=True):
        own_mean, own_variance = unite_moments(*seen)
        variance = np.asarray(variance) + _SMALLEST_VARIANCE
        ratio = (own_variance + _SMALLEST_VARIANCE) / variance
        shift = np.square(own_mean - mean) / variance
        found.append(0.5 * np.mean(ratio + shift - 1 - np.log(ratio)))
    return np.array(found)


@functools.partial(jax.jit, static_argnums=0)
def apply_for_moments(module: nn.Module, variables: Any, images: jax.Array):
    """Compiled form of `apply_with_moments`, with the same arguments and results."""
    return apply_with_moments(module, variables, images)


def _require_answers(logits: np.ndarray) -> None:
    if not np.isfinite(logits).all():
        raise TeacherError(
            "the teacher's logits of procedural images are infinite or not a number: its weights, "
            "or mean and std, cannot be right."
        )
    if np.ptp(logits, axis=0).max() <= _ROUNDING * np.abs(logits).max():
        raise TeacherError(
            "the teacher gives every image the same logits, so that there is nothing to learn from "
            "it: its weights, or mean and std, cannot be right."
        )
