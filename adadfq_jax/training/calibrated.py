"""Students that are calibrated but not trained: the accuracy that training has to improve."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.config import recipes
from adadfq_jax.config.fields import default_config, leave_to_teacher
from adadfq_jax.data.dataset import Dataset
from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.evaluation.accuracy import evaluate
from adadfq_jax.game import procedural
from adadfq_jax.game.learned_ranges import with_kernel_ranges
from adadfq_jax.models import registry
from adadfq_jax.models.layers import Calibration
from adadfq_jax.models.network import Student, Teacher, normalize
from adadfq_jax.quantization.bits import assign_bits, parse_bits
from adadfq_jax.quantization.ranges import RANGE_RULES
from adadfq_jax.training.quantize import quantize

_DRAWN_AT_A_TIME = 16  # procedural images: at 224 pixels a few megabytes each while drawn


def compare_bits(
    teacher: Teacher,
    bits: Sequence[str],
    dataset: Dataset | None = None,
    *,
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    ranges: str = "minmax",
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
      draw: makes images of a generator that is trained already, as `Student.draw` does; None trains
        one.
      ranges: how ranges follow from images: a name in `ranges.RANGE_RULES`. With `least_error`,
        kernels have such ranges as well, as the plus begins with.
      calibration: number of its images that give the ranges "from real images", of procedural
        images, and of those of `draw`.
      epochs: epochs of 200 steps that train a generator whose images give ranges.
      batch_size: images at a time when measuring.
      show_progress: whether to show a progress bar on stderr.

    Returns:
      One dict for each bit-width: `bits`; `agreement`, the share of generated images on which the
      student with ranges from generated images agrees with the teacher; `generated`, `procedural`
      and `real`, top-1 with ranges from generated, procedural and real images, None without a
      dataset; `real_images`, the number of real images that gave the ranges.

    Raises:
      ConfigError: a bit-width is malformed, a number is not positive, or the rule is unknown.
      DataError: the set does not fit the teacher.
    """
    for name, value in (("calibration", calibration), ("epochs", epochs)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    if ranges not in RANGE_RULES:
        raise ConfigError(f"there are no ranges {ranges!r}: {nearest(ranges, RANGE_RULES)}")
    for text in bits:
        parse_bits(text)
    real = procedural_images = generated = None
    if dataset is not None:
        real = dataset.sample(calibration).images(teacher)
        procedural_images = _procedural_images(teacher, calibration)
    if draw is not None:
        generated = draw(calibration)[0]

    def top1(student: Student) -> float | None:
        return None if dataset is None else evaluate(student, dataset, batch_size)["top1"]

    rows = []
    for text in bits:
        if generated is None:
            student = calibrated_on_generated(teacher, text, epochs, show_progress, ranges)
            agreement = student.result.agreement
        else:
            student = calibrated_on(teacher, text, generated, ranges)
            agreement = _agreement(student, generated, batch_size)
        row = {"bits": text, "agreement": agreement, "generated": top1(student)}
        row |= {"procedural": None, "real": None, "real_images": 0}
        if dataset is not None:
            row["procedural"] = top1(calibrated_on(teacher, text, procedural_images, ranges))
            row["real"] = top1(calibrated_on(teacher, text, real, ranges))
            row["real_images"] = len(real)
        rows.append(row)
    return rows


def _procedural_images(teacher: Teacher, count: int) -> np.ndarray:
    """Draws normalised images of a formula, (count, H, W, channels), a few at a time."""
    key, size = jax.random.key(0), teacher.image_size
    return np.concatenate(
        [
            np.asarray(
                procedural.draw(
                    key,
                    jnp.arange(start, start + _DRAWN_AT_A_TIME),
                    size,
                    teacher.mean,
                    teacher.std,
                )
            )
            for start in range(0, count, _DRAWN_AT_A_TIME)
        ]
    )[:count]


def _agreement(student: Student, images: np.ndarray, batch_size: int) -> float:
    """Returns the share of images that a student and its teacher give the same class."""
    alike = [
        np.asarray(student(part)).argmax(-1) == np.asarray(student.teacher(part)).argmax(-1)
        for part in np.split(images, range(batch_size, len(images), batch_size))
    ]
    return float(np.concatenate(alike).mean())


def calibrated_on_generated(
    teacher: Teacher,
    bits: str,
    epochs: int,
    show_progress: bool = False,
    ranges: str = "minmax",
) -> Student:
    """Runs only the calibration phase, in which ranges follow the generated images.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      epochs: number of epochs, of 200 steps each.
      show_progress: whether to show a progress bar on stderr.
      ranges: as `compare_bits` takes it.
    """
    config = leave_to_teacher(default_config(bits)).copy_and_resolve_references()
    config.quant.ranges = ranges
    if ranges == "least_error":  # so that kernels have ranges, which nothing learns here
        config.quant.learned_ranges, config.student.optimizer = True, "adam"
    # Before the epochs change, since the recipe's rates are those of a whole run.
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    config.epochs = config.warmup_epochs = config.calibration_epochs = epochs
    config.devices = 1
    return quantize(config, teacher, show_progress=show_progress)


def calibrated_on(
    teacher: Teacher, bits: str, images: np.ndarray, ranges: str = "minmax"
) -> Student:
    """Returns a student whose ranges follow from some images.

    All images go through the student in one batch: a layer's range depends on the quantized outputs
    of the layers before it, so those ranges must be final first.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      images: uint8 (N, H, W, channels), or floats already normalised.
      ranges: as `compare_bits` takes it; `minmax` are the smallest and largest values.
    """
    module = teacher.module.clone(calibration=Calibration(ranges))
    shapes = registry.initial_variables(teacher.module, teacher.image_size)
    unset = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"])
    variables = dict(teacher.variables)
    variables["bits"] = assign_bits(shapes["bits"], *parse_bits(bits), ())
    if ranges == "least_error":
        unset = with_kernel_ranges(unset, variables["params"], variables["bits"], ranges)
    # One update sets each range, since the first value of a bias-corrected average is the average.
    variables["ranges"] = _calibrate(
        module, variables | {"ranges": unset}, images, teacher.mean, teacher.std
    )
    return Student(
        architecture=teacher.architecture,
        module=teacher.module,
        variables=variables,
        image_size=teacher.image_size,
        mean=teacher.mean,
        std=teacher.std,
        preparation=teacher.preparation,
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
    kinds = ("procedural", "generated", "real")
    lines = [f"{'bits':<10}top-1, ranges from images that are", " " * 10 + _columns(kinds)]
    lines += [
        f"{row['bits']:<10}{_columns([format(row[kind], '.2%') for kind in kinds])}" for row in rows
    ]
    count = rows[0]["real_images"]
    return "\n".join(
        [
            *lines,
            "",
            f"No student is trained. The real images that give ranges are {count}, drawn at random "
            f"from {dataset_name};",
            "top-1 is measured on all of that set, these included.",
        ]
    )


def _columns(texts: Sequence[str]) -> str:
    return "".join(f"{text:<14}" for text in texts).rstrip()
