"""CutMix: a box of one image pasted into an image of another kind, for the student to learn from.

A generated image shows one class all over; a procedural image shows none. A box of one in the other
has edges, scales and classes next to each other, as photographs have. Source: Yun et al., "CutMix",
ICCV 2019. Labels need no mixing here, since the student learns from the teacher's logits.
"""

import jax
import jax.numpy as jnp

from adadfq_jax.game import draws


def cut_together(
    key: jax.Array, indices: jax.Array, first: jax.Array, second: jax.Array, share: float
) -> jax.Array:
    """Replaces some images of the first kind by cuts of both kinds.

    Args:
      key: random key of the batch.
      indices: positions of the images in the whole batch, (N,).
      first: images of one kind, (N, s, s, channels).
      second: for each of them, the image of the other kind to cut it with, same shape.
      share: probability that an image is cut.

    Returns:
      (N, s, s, channels): images of `first`, and cuts. In a cut, either kind with equal probability
      fills a box in the other; the box's area and centre are uniform over the image.
    """
    chosen, area, across, down, inside = draws.uniform(key, indices, (5,)).T[:, :, None]
    place = (jnp.arange(first.shape[1]) + 0.5) / first.shape[1]
    half = 0.5 * jnp.sqrt(area)
    rows, columns = jnp.abs(place - down) < half, jnp.abs(place - across) < half
    box = rows[:, :, None] & columns[:, None, :]  # clipped where it crosses the border
    of_second = (box == (inside < 0.5)[:, :, None]) & (chosen < share)[:, :, None]
    return jnp.where(of_second[..., None], second, first)
