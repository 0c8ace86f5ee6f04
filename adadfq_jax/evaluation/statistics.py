"""Whether a teacher's BatchNorm statistics fit the network that it was read as, without data.

A network that is not the one that was trained (other strides, other padding, another normalisation
of its images) gives its BatchNorms other inputs than in training, and procedural images are near
enough to photographs to show it. What is measured is the Kullback-Leibler divergence of normal
distributions from a BatchNorm's input to its stored statistics, mean over the channels and over the
BatchNorms, in nats.
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

# Of eight networks read as what they are, six lie below it (0.029 to 0.070) and two just above
# (0.118 and, of the built-in grey digits, 0.119). Of 37 wrong readings 31 lie above it; the six
# below are presets near the right one and 2x2 averages in shortcuts. See configs/RESULTS.md.
LARGEST_USUAL_DISTANCE = 0.1

_SEED = 20
# Images: as many as a network is asked about in some seconds, whatever the size of its images.
_PIXELS, _FEWEST, _MOST = 2**19, 2, 64
_SMALLEST_VARIANCE = 1e-12
# Logits that differ by less from image to image do not depend on the image.
_ROUNDING = 1e-5


@dataclasses.dataclass(frozen=True)
class StatisticsCheck:
    """How far procedural images are from what a teacher was trained on.

    Attributes:
      distance: in nats, mean over the BatchNorms.
    """

    distance: float

    @property
    def unusual(self) -> bool:
        """Whether the distance is larger than that of networks which are what they seem."""
        return not self.distance <= LARGEST_USUAL_DISTANCE

    @property
    def sentence(self) -> str:
        """What was measured and what it says, in words."""
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

    It warns of most mistakes in architecture and normalisation and proves nothing: presets that are
    near each other are not told apart (0.034 against 0.036 nats for a ResNet-20 of CIFAR-10).

    Args:
      teacher: the network in full precision.

    Returns:
      The distance; the same for the same teacher.

    Raises:
      TeacherError: its logits are not finite, or the same for all images, so that there is nothing
        to learn from it.
    """
    size = teacher.image_size
    count = min(max(_PIXELS // size**2, _FEWEST), _MOST)
    drawn = procedural.draw(
        jax.random.key(_SEED), jnp.arange(count), size, tuple(teacher.mean), tuple(teacher.std)
    )
    logits, moments = apply_for_moments(teacher.module, teacher.on_device, drawn)
    _require_answers(np.asarray(logits))
    # Of one batch, by the function that unites several.
    united = [tuple(np.asarray(value)[None] for value in each) for each in moments]
    return StatisticsCheck(float(np.mean(divergences(teacher, united))))


def divergences(network: Network, moments: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Returns how far the inputs of BatchNorms are from their stored statistics, in nats.

    Args:
      network: a network in full precision.
      moments: (means, variances) of the input of each BatchNorm in equal batches, each
        (batches, channels), ordered as `stored_statistics`.

    Returns:
      (L,), mean over the channels of each.
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
    """`apply_with_moments`, compiled."""
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
