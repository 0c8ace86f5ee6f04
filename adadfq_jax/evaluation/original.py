"""Teachers read from PyTorch modules, and the proof that they compute what the module computes."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.errors import TeacherError, VerificationError
from adadfq_jax.evaluation.statistics import check_statistics
from adadfq_jax.game import procedural
from adadfq_jax.models.layers import input_shape
from adadfq_jax.models.network import Teacher
from adadfq_jax.teachers import torch_module
from adadfq_jax.teachers.convert import summary
from adadfq_jax.teachers.stated import Stated

# Of the largest logit: what float32 may differ by, and float64, which tells rounding from mistakes.
_LARGEST_DIFFERENCE, _LARGEST_IN_FLOAT64 = 1e-4, 1e-6
_IMAGES, _SEED = 4, 21  # images of either kind


def from_torch(
    module: Any,
    *,
    image_size: int,
    mean: Sequence[float] | float,
    std: Sequence[float] | float,
    pixel_units: int = 1,
    name: str | None = None,
) -> Teacher:
    """Reads a teacher from a PyTorch module, and proves that both give the same logits.

    Args:
      module: a `torch.nn.Module` in evaluation mode that maps (B, channels, H, W) to logits (B, C).
      image_size: side of the images in pixels.
      mean, std: normalisation in `pixel_units`: a number for each channel, or one for all.
      pixel_units: 1 for mean and std of pixels in [0, 1]; 255 for those of pixels from 0 to 255.
      name: what the network is called; by default, its class.

    Returns:
      The teacher; `describe_teacher` says what was found.

    Raises:
      TeacherError: the module is no network that can be read; says why, and where.
      VerificationError: the network that was read gives other logits.
    """
    module = torch_module.plain_module(module)
    stated = Stated(None, mean, std, image_size, pixel_units=pixel_units)
    teacher = torch_module.read_module(module, stated, name)
    return torch_module.with_proof(teacher, prove(teacher, module))


def prove(teacher: Teacher, module: Any) -> float:
    """Compares a teacher's logits with its module's, on random and procedural images.

    Args:
      teacher: it.
      module: the PyTorch module that it comes from.

    Returns:
      The largest difference, as a share of the largest logit; in float64 where it would otherwise
      be rounding.

    Raises:
      VerificationError: the logits differ.
      TeacherError: they are not finite.
    """
    images = _images(teacher)
    difference = _difference(
        np.asarray(teacher(images)), torch_module.in_float32(module, images), teacher
    )
    if difference <= _LARGEST_DIFFERENCE:
        return difference
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), teacher.variables)
        found = np.asarray(dataclasses.replace(teacher, variables=wide)(images.astype(np.float64)))
    difference = _difference(found, torch_module.in_float64(module, images), teacher)
    if difference > _LARGEST_IN_FLOAT64:
        raise VerificationError(
            f"{teacher.architecture} was not read as what it is: its logits differ from the "
            f"module's by {difference:.1e} of the largest, in float64"
            f"{torch_module.why_unsteady(module, images)}."
        )
    return difference


def _images(teacher: Teacher) -> np.ndarray:
    size = teacher.image_size
    shape = _IMAGES, *input_shape(teacher.module, size)
    random = np.random.default_rng(_SEED).standard_normal(shape, np.float32)
    key, indices = jax.random.key(_SEED), jnp.arange(_IMAGES)
    drawn = procedural.draw(key, indices, size, tuple(teacher.mean), tuple(teacher.std))
    return np.concatenate([random, np.asarray(drawn, np.float32)])


def _difference(found: np.ndarray, expected: np.ndarray, teacher: Teacher) -> float:
    if not np.isfinite(expected).all():
        raise TeacherError(
            f"{teacher.architecture}'s logits are infinite or not a number: its weights, or mean, "
            "std and image size, cannot be right."
        )
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def describe_teacher(teacher: Teacher) -> str:
    """Describes a teacher on one screen: what it was read from, its size, its statistics."""
    return summary(teacher, check_statistics(teacher).to_text())
