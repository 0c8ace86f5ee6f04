"""The networks by name, and what can be said of one without running it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adadfq_jax.models.generator import LATENT_SIZE, SUMMED, Generator
from adadfq_jax.models.registry import ARCHITECTURES, build, default_image_size
from adadfq_jax.models.size import Size, measure

__all__ = [
    "ARCHITECTURES",
    "LATENT_SIZE",
    "SUMMED",
    "Generator",
    "Size",
    "build",
    "default_image_size",
    "initial_variables",
    "measure",
]


def initial_variables(
    module: nn.Module, image_size: int, key: jax.Array | None = None
) -> dict[str, Any]:
    """Returns a classifier's variable collections (see `layers`), or their shapes.

    Args:
      module: the classifier.
      image_size: side of its images in pixels.
      key: random key of the initial parameters; without it, nothing is computed and the leaves
        are `jax.ShapeDtypeStruct`s.
    """
    images = jnp.zeros((1, image_size, image_size, 3))
    if key is None:
        return jax.eval_shape(module.init, jax.random.key(0), images)
    return jax.jit(module.init)(key, images)
