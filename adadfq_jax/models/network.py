"""A classifier with its variables and its input normalisation: `Network`, `Teacher`, `Student`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.models import display, pictures
from adadfq_jax.models.preparation import USUAL, Preparation
from adadfq_jax.models.size import packed_bytes
from adadfq_jax.quantization import ranges
from adadfq_jax.quantization.bits import SYMMETRIC
from adadfq_jax.storage.digests import digest

# A notebook shows this many images, of different classes, chosen from so many.
_SHOWN, _SHOWN_OF = 10, 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Network:
    """A classifier that can be called on images.

    Attributes:
      architecture: name in `registry.ARCHITECTURES`.
      module: the linen module.
      variables: the module's collections; see `layers`.
      image_size: side of the images in pixels.
      mean, std: normalisation of pixels in [0, 1], a number for each channel of the images.
      preparation: how image files become its images.
      class_names: names of the classes in the order of the logits; None where they are unknown.
    """

    architecture: str
    module: nn.Module
    variables: dict[str, Any]
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preparation: Preparation = USUAL
    class_names: tuple[str, ...] | None = None

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return self.module.classes

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.mean)

    def __repr__(self) -> str:
        """One line without arrays, for a notebook."""
        return f"{type(self).__name__}({', '.join(value for _, value in self.described())})"

    def _repr_html_(self) -> str:
        return display.as_html(type(self).__name__, self.described())

    def described(self) -> list[tuple[str, str]]:
        """Returns what a person wants to know of the network at a glance: (name, value)."""
        side, arrays = self.image_size, flatten(self.variables)
        return [
            ("network", self.architecture),
            ("bits", display.bits_in_words(arrays)),
            ("classes", f"{self.classes} classes"),
            ("images", f"{side}x{side} pixels"),
            ("size", display.kilobytes(packed_bytes(arrays))),
        ]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the variables' names, types, shapes and values."""
        return digest(flatten(self.variables))

    @functools.cached_property
    def on_device(self) -> dict[str, Any]:
        """The variables on the first device, copied there at the first use."""
        return jax.device_put(self.variables)

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Classifies images.

        Args:
          images: (B, H, W, channels), uint8 pixels or already normalised floats.

        Returns:
          Logits, (B, classes).

        Raises:
          ConfigError: the images are neither uint8 nor floats, or have another shape.
        """
        images = check_images(images, self.image_size, self.channels)
        kind = jnp.result_type(float)
        given = images, np.asarray(self.mean, kind), np.asarray(self.std, kind)
        return _classify(self.module, self.on_device, *jax.device_put(given))


def check_images(images: Any, image_size: int, channels: int) -> jax.Array | np.ndarray:
    """Returns images, of whatever library, as arrays that a network takes.

    Args:
      images: (B, image_size, image_size, channels), uint8 or floats.
      image_size: side of the network's images in pixels.
      channels: number of their channels.

    Raises:
      ConfigError: the images are neither uint8 nor floats, or have another shape.
    """
    if not isinstance(images, jax.Array):
        images = np.asarray(images)
    if images.dtype != np.uint8 and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigError(
            "images must be uint8 pixels, or floats that are already normalised, not "
            f"{images.dtype}."
        )
    if images.ndim != 4 or images.shape[1:] != (image_size, image_size, channels):
        hint = ": one image is images[None]" if images.ndim == 3 else ""
        raise ConfigError(
            f"images must be (number, {image_size}, {image_size}, {channels}), not "
            f"{tuple(images.shape)}{hint}."
        )
    return images


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
    # C order, because safetensors writes an array's memory as it is; in another order that would be
    # read as another array.
    return {name: np.asarray(array, order="C") for name, array in flat.items()}


def unflatten(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def kernel_range(arrays: Mapping[str, np.ndarray], layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the (minimum, maximum) that bound a student's kernel, for each output channel.

    Args:
      arrays: a student's variables, as `flatten` returns them.
      layer: the layer's name, such as `stage1_block1/conv1`.
    """
    if f"ranges/{layer}/minimum" in arrays:
        ends = arrays[f"ranges/{layer}/minimum"], arrays[f"ranges/{layer}/maximum"]
    else:
        ends = ranges.weight_range(arrays[f"params/{layer}/kernel"])
    if f"bits/{layer}/{SYMMETRIC}" in arrays:
        ends = ranges.symmetric_range(*ends, arrays[f"bits/{layer}/weight"])
    return tuple(map(np.asarray, ends))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Teacher(Network):
    """The frozen full-precision classifier P, with collections `params` and `batch_stats`.

    Attributes:
      source: SHA-256 of the PyTorch file that it was read from; None without such a file.
      convention: a description of the form and naming recognised in that file, for people.
      keys: code of the naming convention of that file's variables; see `naming.by_code`.
    """

    source: str | None = None
    convention: str | None = None
    keys: str | None = None

    def __post_init__(self):
        """Checks that there are two classes or more, and that images have pixels enough.

        Raises:
          TeacherError: the network has one class, or images are resized to less than its size.
        """
        if self.classes < 2:
            raise TeacherError(
                "a teacher of one class has one logit, and a softmax of that is 1 whatever the "
                "image: give a network of two logits or more (where the one logit z goes through a "
                "sigmoid, a last layer with the logits 0 and z is the same classifier)."
            )
        if (self.preparation.resize or self.image_size) < self.image_size:
            raise TeacherError(
                f"resize={self.preparation.resize} leaves no centre of image_size="
                f"{self.image_size} to cut out: give {self.image_size} or more."
            )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Student(Network):
    """The quantized classifier Q: collections `params`, `batch_stats`, `bits` and `ranges`.

    Attributes:
      result: the `training.result.Result` of its run; None where the run is not finished.
      teacher: the teacher that it is a quantized copy of.
      step: steps that its run has taken; None for a student that no run made.
      draw: makes N held-out images and their labels, as `training.held_out.generate` does; None
        where no generator was trained.
      given_images: number of images of a user that it has learned from; 0 where it is data-free.
    """

    result: Any
    teacher: Teacher
    step: int | None = None
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None
    given_images: int = 0

    def described(self) -> list[tuple[str, str]]:
        """As of any network, with the teacher's size and what was measured first of all."""
        *rows, (name, size) = super().described()
        if self.result is not None:
            asked = {"weight": self.result.weight_bits, "activation": self.result.activation_bits}
            bits = display.bits_in_words(flatten(self.variables), asked)
            rows = [(name, bits if name == "bits" else value) for name, value in rows]
        teacher = display.kilobytes(packed_bytes(flatten(self.teacher.variables)))
        rows.append((name, f"{size} of the teacher's {teacher}"))
        if self.given_images:
            rows.append(("data", display.not_data_free(self.given_images)))
        return rows + ([] if self.result is None else [("measured", self.result.headline())])

    def _repr_html_(self) -> str:
        shown = []
        if self.draw is not None:
            images, labels = self.draw(_SHOWN_OF)
            _, first = np.unique(labels, return_index=True)
            strip = pictures.draw_strip(images[first[:_SHOWN]], self.mean, self.std)
            shown = [("images that the generator makes, one of each class", strip)]
        rows = self.described() if self.result is None else self.described()[:-1]
        measured = [] if self.result is None else self.result.rows()
        said = ("network", "data")
        rows += [(name, value) for name, value in measured if name not in said]
        return display.as_html("Student", rows, shown)
