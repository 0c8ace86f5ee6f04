"""The networks by name, and what can be said of one without running it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.models.generator import LATENT_SIZE, Generator
from adadfq_jax.models.resnet_cifar import ResNetCifar

__all__ = ["ARCHITECTURES", "LATENT_SIZE", "Generator", "build", "initial_variables"]

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    f"resnet{6 * n + 2}_cifar": functools.partial(ResNetCifar, stage_sizes=(n, n, n))
    for n in (1, 3, 5, 7, 9, 18)
}


def build(architecture: str, classes: int) -> nn.Module:
    """Constructs a classifier by name; the same module serves teacher and student.

    Args:
      architecture: one of `ARCHITECTURES`.
      classes: number of classes C.

    Raises:
      ConfigError: the name is unknown.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"unknown network {architecture!r}: {nearest(architecture, ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture](classes=classes)


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
