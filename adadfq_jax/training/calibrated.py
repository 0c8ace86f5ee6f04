"""Is training worth it? Students that only got their ranges: what a game would have to repair."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.config import recipes
from adadfq_jax.config.fields import default_config, leave_to_teacher
from adadfq_jax.data.dataset import Dataset
from adadfq_jax.errors import ConfigError
from adadfq_jax.evaluation.accuracy import evaluate
from adadfq_jax.models import registry
from adadfq_jax.models.network import Student, Teacher, normalize
from adadfq_jax.quantization.bits import assign_bits, parse_bits
from adadfq_jax.training.quantize import quantize


def compare_bits(
    teacher: Teacher,
    bits: Sequence[str],
    dataset: Dataset | None = None,
    *,
    calibration: int = 512,
    epochs: int = 4,
    batch_size: int = 256,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """Measures untrained students of several bit-widths.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      dataset: an evaluation set, if there is one.
      calibration: how many of its images give the ranges "from real images".
      epochs: of 200 steps, for the ranges "from generated images".
      batch_size: images at a time when measuring.
      show_progress: whether to show a progress bar on stderr.

    Returns:
      One dict for each: `bits`; `agreement`, with the teacher on generated images, of the student
      with ranges from generated images; `generated` and `real`, top-1 with ranges from these, None
      without images; `real_images`, how many gave the ranges.

    Raises:
      ConfigError: a bit-width is malformed, or a number is not positive.
      DataError: the set does not fit the teacher.
    """
    for name, value in (("calibration", calibration), ("epochs", epochs)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    for text in bits:
        parse_bits(text)
    images = None if dataset is None else dataset.sample(calibration).images(teacher.image_size)

    def top1(student: Student) -> float:
        return evaluate(student, dataset, batch_size)["top1"]

    rows = []
    for text in bits:
        student = calibrated_on_generated(teacher, text, epochs, show_progress)
        row = {"bits": text, "agreement": student.result.agreement}
        row |= {"generated": None, "real": None, "real_images": 0}
        if dataset is not None:
            row["generated"] = top1(student)
            row["real"] = top1(calibrated_on(teacher, text, images))
            row["real_images"] = len(images)
        rows.append(row)
    return rows


def calibrated_on_generated(
    teacher: Teacher, bits: str, epochs: int, show_progress: bool = False
) -> Student:
    """Plays the calibration of a game and nothing else: ranges follow the generated images.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      epochs: how many, of 200 steps.
      show_progress: whether to show a progress bar on stderr.
    """
    config = leave_to_teacher(default_config(bits)).copy_and_resolve_references()
    # The rates of a whole game, of which this is the beginning.
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    config.epochs = config.warmup_epochs = config.calibration_epochs = epochs
    config.devices = 1
    return quantize(config, teacher, show_progress=show_progress)


def calibrated_on(teacher: Teacher, bits: str, images: np.ndarray) -> Student:
    """Takes the ranges of all activations from the smallest and largest values on some images.

    All images go through the student at once, since every layer sees what the layers before it,
    already quantized, make of them.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      images: uint8 (N, H, W, 3), or floats already normalised.
    """
    shapes = registry.initial_variables(teacher.module, teacher.image_size)
    unset = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"])
    variables = dict(teacher.variables)
    variables["bits"] = assign_bits(shapes["bits"], *parse_bits(bits), ())
    # The first update of a moving average that is corrected for its bias is the value itself.
    variables["ranges"] = _calibrate(
        teacher.module, variables | {"ranges": unset}, images, teacher.mean, teacher.std
    )
    return Student(
        architecture=teacher.architecture,
        module=teacher.module,
        variables=variables,
        image_size=teacher.image_size,
        mean=teacher.mean,
        std=teacher.std,
        result=None,
        teacher=teacher,
    )


@functools.partial(jax.jit, static_argnums=0)
def _calibrate(module: nn.Module, variables: Any, images: jax.Array, mean, std) -> Any:
    _, written = module.apply(variables, normalize(images, mean, std), mutable=["ranges"])
    return written["ranges"]


def calibrated_table(rows: Sequence[dict[str, Any]], dataset_name: str | None) -> str:
    """Returns what `compare_bits` returned as a plain table, with where its ranges come from."""
    if dataset_name is None:
        lines = [f"{'bits':<10}agreement with the teacher, ranges from generated images"]
        lines += [f"{row['bits']:<10}{row['agreement']:.2%}" for row in rows]
        return "\n".join([*lines, "", "Agreement on generated images: there are no real ones."])
    lines = [f"{'bits':<10}{'top-1, ranges from generated images':<38}from real images"]
    lines += [f"{row['bits']:<10}{row['generated']:<38.2%}{row['real']:.2%}" for row in rows]
    count = rows[0]["real_images"]
    return "\n".join(
        [
            *lines,
            "",
            "No student is trained. The ranges from real images are the smallest and largest "
            f"values on {count} images",
            f"taken from {dataset_name} itself, evenly over it, and measured on again with all "
            "others.",
        ]
    )
