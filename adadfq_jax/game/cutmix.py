"""CutMix: images of two kinds cut together, so that the student sees what lies between them.

A generated image alone fills its frame with what the teacher takes for one class; a procedural one
has no class. One of them seen through a box in the other has edges, scales and classes side by
side, as photographs do. Source: Yun et al., "CutMix", ICCV 2019; there are no labels to mix here,
since the teacher judges the result.

As a procedural image, a cut is a function of its batch's key and its index alone.
"""

import jax
import jax.numpy as jnp


def cut_together(
    key: jax.Array, indices: jax.Array, first: jax.Array, second: jax.Array, share: float
) -> jax.Array:
    """Replaces some images of the first kind by cuts of both kinds.

    Args:
      key: of the batch.
      indices: which of the batch's images, (N,).
      first: (N, s, s, channels).
      second: what each of them may be cut together with, same shape.
      share: probability that it is.

    Returns:
      (N, s, s, channels): `first`, or one of the kinds in a box of uniform area anywhere in the
      other; which is inside is uniform as well.
    """
    numbers = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index), (5,)))
    chosen, area, across, down, inside = numbers(indices).T[:, :, None]
    place = (jnp.arange(first.shape[1]) + 0.5) / first.shape[1]
    half = 0.5 * jnp.sqrt(area)
    rows, columns = jnp.abs(place - down) < half, jnp.abs(place - across) < half
    box = rows[:, :, None] & columns[:, None, :]  # at the border only a part of it
    of_second = (box == (inside < 0.5)[:, :, None]) & (chosen < share)[:, :, None]
    return jnp.where(of_second[..., None], second, first)
