"""Random numbers of single images, the same on any number of devices.

They depend on the batch's key and on the image's position in the whole batch, and not on which
images a device holds.
"""

import jax


def uniform(key: jax.Array, indices: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Draws numbers in [0, 1) for each image.

    Args:
      key: random key of the batch.
      indices: positions of the images in the whole batch, (N,).
      shape: of the numbers of one image.

    Returns:
      (N, *shape).
    """
    return jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index), shape))(
        indices
    )
