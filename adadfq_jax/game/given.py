"""Given images: unlabelled images of a user, flipped and shifted, for the student to learn from.

Flips and shifts are those with which networks of small images are usually trained. Source: He et
al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2; there the border is
black, here the image is mirrored at it, whatever the teacher was trained with.
"""

import jax
import jax.numpy as jnp

from adadfq_jax.game import draws
from adadfq_jax.models.network import normalize

_SHIFT = 8  # the largest shift is the side over this


def draw(
    key: jax.Array,
    indices: jax.Array,
    images: jax.Array,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Draws some of the images with replacement, each flipped and shifted at random.

    Args:
      key: random key of the batch.
      indices: positions of the drawn images in the whole batch, (N,).
      images: all given images, uint8 (M, s, s, channels).
      mean, std: the teacher's normalisation of pixels in [0, 1], by channel.

    Returns:
      Images in the teacher's normalised input space, (N, s, s, channels).
    """
    count, size = images.shape[:2]
    chosen, flipped, down, across = draws.uniform(key, indices, (4,)).T[:, :, None]
    chosen = jnp.floor(count * chosen).astype(int)
    columns = _shifted(across, size)
    columns = jnp.where(flipped < 0.5, size - 1 - columns, columns)
    rows = _shifted(down, size)
    taken = images[chosen[:, :, None], rows[:, :, None], columns[:, None, :]]
    return normalize(taken, mean, std)


def _shifted(uniform: jax.Array, size: int) -> jax.Array:
    """Returns where a side's pixels are taken from, (N, size), for numbers (N, 1) in [0, 1)."""
    most = size // _SHIFT
    shift = jnp.floor((2 * most + 1) * uniform).astype(int) - most
    place = jnp.abs(jnp.arange(size) + shift)  # mirrored at the first pixel, and at the last
    return size - 1 - jnp.abs(size - 1 - place)


def put_in_place(
    key: jax.Array, indices: jax.Array, drawn: jax.Array, given: jax.Array, share: float
) -> jax.Array:
    """Replaces a share of the drawn images by given ones.

    Args:
      key: random key of the batch.
      indices: positions of the images in the whole batch, (N,).
      drawn, given: images, each (N, s, s, channels).
      share: probability that a given image takes the place of a drawn one.

    Returns:
      (N, s, s, channels).
    """
    return jnp.where((draws.uniform(key, indices) < share)[:, None, None, None], given, drawn)
