"""A classifier together with its variables and its input space: what teacher and student share."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax import quantizers
from adadfq_jax.digests import digest
from adadfq_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A classifier that can be called.

    Attributes:
      architecture: its name in `models.ARCHITECTURES`.
      module: the linen module.
      variables: its collections; see `models.layers`.
      image_size: side of its images in pixels.
      mean, std: normalisation per channel of pixels in [0, 1].
    """

    architecture: str
    module: nn.Module
    variables: dict[str, Any]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return self.module.classes

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the variables."""
        return digest(flatten(self.variables))

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Classifies images.

        Args:
          images: (B, H, W, 3), uint8 pixels, or floats that are already normalised.

        Returns:
          Logits, (B, classes).

        Raises:
          ConfigError: the images are of another type.
        """
        if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
            raise ConfigError(
                "images must be uint8 pixels, or floats that are already normalised, not "
                f"{images.dtype}."
            )
        return _classify(self.module, self.variables, images, self.mean, self.std)


def normalize(images: jax.Array, mean: Any, std: Any) -> jax.Array:
    """Brings uint8 pixels into the teacher's input space; leaves floats as they are."""
    if images.dtype != jnp.uint8:
        return images
    pixels = images.astype(jnp.result_type(float)) / 255
    return (pixels - jnp.array(mean)) / jnp.array(std)


@functools.partial(jax.jit, static_argnums=0)
def _classify(module: nn.Module, variables: Any, images: jax.Array, mean, std) -> jax.Array:
    return module.apply(variables, normalize(images, mean, std))


def flatten(variables: Any) -> dict[str, np.ndarray]:
    """Returns nested variables as NumPy arrays by name, such as `params/stem_conv/kernel`."""
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    # C order, because safetensors writes other layouts' bytes as they lie, which is another array.
    return {name: np.asarray(array, order="C") for name, array in flat.items()}


def unflatten(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def kernel_range(arrays: Mapping[str, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns what a student's kernel is quantized from and to, by output channel.

    Args:
      arrays: a student's variables, of `flatten`.
      layer: the layer's name.
    """
    if f"ranges/{layer}/minimum" in arrays:
        return arrays[f"ranges/{layer}/minimum"], arrays[f"ranges/{layer}/maximum"]
    return tuple(map(np.asarray, quantizers.weight_range(arrays[f"params/{layer}/kernel"])))
