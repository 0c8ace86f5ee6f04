"""Students that are calibrated but not trained: the accuracy that training has to improve."""

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
    """Measures calibrated, untrained students of several bit-widths.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      dataset: an evaluation set; None measures only the agreement with the teacher.
      calibration: number of its images that give the ranges "from real images".
      epochs: epochs of 200 calibration steps that give the ranges "from generated images".
      batch_size: images at a time when measuring.
      show_progress: whether to show a progress bar on stderr.

    Returns:
      One dict for each bit-width: `bits`; `agreement`, the share of generated images on which the
      student with ranges from generated images agrees with the teacher; `generated` and `real`,
      top-1 with ranges from generated and from real images, None without a dataset; `real_images`,
      the number of real images that gave the ranges.

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
    """Runs only the calibration phase, in which ranges follow the generated images.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      epochs: number of epochs, of 200 steps each.
      show_progress: whether to show a progress bar on stderr.
    """
    config = leave_to_teacher(default_config(bits)).copy_and_resolve_references()
    # Before the epochs change, since the recipe's rates are those of a whole run.
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    config.epochs = config.warmup_epochs = config.calibration_epochs = epochs
    config.devices = 1
    return quantize(config, teacher, show_progress=show_progress)


def calibrated_on(teacher: Teacher, bits: str, images: np.ndarray) -> Student:
    """Returns a student whose activation ranges are the smallest and largest values on some images.

    All images go through the student in one batch: a layer's range depends on the quantized outputs
    of the layers before it, so those ranges must be final first.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      images: uint8 (N, H, W, 3), or floats already normalised.
    """
    shapes = registry.initial_variables(teacher.module, teacher.image_size)
    unset = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"])
    variables = dict(teacher.variables)
    variables["bits"] = assign_bits(shapes["bits"], *parse_bits(bits), ())
    # One update sets each range, since the first value of a bias-corrected average is the average.
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
    """Formats the rows of `compare_bits` as a plain table, with a note on where ranges come from.

    Args:
      rows: one dict for each bit-width.
      dataset_name: name of the evaluation set; None without one.
    """
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
            f"drawn at random from {dataset_name}; top-1 is measured on all of that set, these "
            "included.",
        ]
    )
