"""Students that are calibrated but not trained: the accuracy that training has to improve."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.config import recipes
from adadfq_jax.config.bits_file import with_files
from adadfq_jax.config.fields import default_config, leave_to_teacher
from adadfq_jax.data.dataset import Dataset
from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.evaluation.accuracy import evaluate, logits_of
from adadfq_jax.game import procedural
from adadfq_jax.game.learned_ranges import with_kernel_ranges
from adadfq_jax.models import registry
from adadfq_jax.models.layers import Calibration
from adadfq_jax.models.network import Student, Teacher, normalize
from adadfq_jax.quantization.bits import assign_bits, parse_bits
from adadfq_jax.quantization.ranges import RANGE_RULES
from adadfq_jax.training.progress import Progress
from adadfq_jax.training.quantize import quantize

BATCH = 16  # images of a step
_KINDS = ("procedural", "generated", "real")


def compare_bits(
    teacher: Teacher,
    bits: Sequence[str],
    dataset: Dataset | None = None,
    *,
    draw: Callable[[int, int], tuple[np.ndarray, np.ndarray]] | None = None,
    ranges: str = "minmax",
    calibration: int = 512,
    epochs: int = 4,
    batch_size: int = 256,
    quick: bool = False,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """Measures calibrated, untrained students of several bit-widths.

    One generator is trained for all of them, with the widest one's student; the others' ranges
    follow its images.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`, or `w4a4@bits.json` with exceptions in a file.
      dataset: an evaluation set; None measures only the agreement with the teacher.
      draw: makes images of a generator that is trained already, as `Student.draw` does; None trains
        one.
      ranges: how ranges follow from images: a name in `ranges.RANGE_RULES`. With `least_error`,
        kernels have such ranges as well, as the plus begins with.
      calibration: number of images of each kind that give ranges, and of others of that kind, on
        which student and teacher are compared.
      epochs: epochs of 200 steps that train a generator whose images give ranges.
      batch_size: images at a time when measuring.
      quick: whether procedural images take the place of generated ones, so that nothing is trained.
      show_progress: whether to show on stderr what is done and how long it takes.

    Returns:
      One dict for each bit-width: `bits`; `images`, "generated" or "procedural"; `agreement`, the
      share of such images on which the student with ranges from them agrees with the teacher;
      `procedural`, `generated` and `real`, top-1 with ranges from images of that kind, None where
      it was not measured; `real_images`, the number of real images that gave ranges.

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
        bits_of(teacher, text)
    progress = Progress(len(bits), show_progress)
    given, trained, generated = {}, None, None
    widest = max(map(usual_bits, bits), key=lambda text: sum(parse_bits(text)))
    if dataset is not None:
        given["real"] = dataset.sample(calibration).images(teacher)
    if dataset is not None or quick:
        drawn = procedural_images(teacher, 2 * calibration if quick else calibration)
        given["procedural"], compared = drawn[:calibration], drawn[calibration:]
    if not quick:
        if draw is None:
            progress.say(f"one generator for {', '.join(bits)}, trained with {widest}")
            trained = calibrated_on_generated(teacher, widest, epochs, show_progress, ranges)
            draw = trained.draw
        # Of batches as a step has them, since the generator normalises by the batch.
        drawn, _ = draw(2 * calibration, BATCH)
        compared, generated = drawn[:calibration], drawn[calibration:]
    kind = "procedural" if quick else "generated"

    def top1(student: Student | None) -> float | None:
        if dataset is None or student is None:
            return None
        return evaluate(student, dataset, batch_size)["top1"]

    rows, began = [], time.monotonic()
    expected = logits_of(teacher, compared, batch_size).argmax(-1)
    for number, text in enumerate(bits):
        left = (time.monotonic() - began) / number * (len(bits) - number) if number else None
        about = "" if left is None else f", about {left:.0f} s left"
        progress.say(f"{text}, {number + 1} of {len(bits)}: measuring{about}")
        students = {name: calibrated_on(teacher, text, few, ranges) for name, few in given.items()}
        if trained is not None and text == widest:
            students["generated"] = trained
        elif generated is not None:
            students["generated"] = following(teacher, text, generated, ranges)
        found = logits_of(students[kind], compared, batch_size).argmax(-1)
        agreement = np.mean(found == expected)
        row = {"bits": text, "images": kind, "agreement": float(agreement)}
        row |= {name: top1(students.get(name)) for name in _KINDS}
        rows.append(row | {"real_images": len(given.get("real", ()))})
    return rows


def procedural_images(teacher: Teacher, count: int) -> np.ndarray:
    """Draws the same procedural images at each call, (count, H, W, channels), normalised."""
    given = teacher.image_size, tuple(teacher.mean), tuple(teacher.std)
    starts = range(0, count, BATCH)
    parts = [
        procedural.draw(jax.random.key(0), start + jnp.arange(BATCH), *given) for start in starts
    ]
    return np.concatenate(parts)[:count]


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
    counts = range(1, jax.device_count() + 1)
    config.devices = max(count for count in counts if config.batch_size % count == 0)
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
    # One update sets each range, since the first value of a bias-corrected average is the average.
    return calibrated_with(teacher, bits_of(teacher, bits), [images], ranges)


def following(teacher: Teacher, bits: str, images: np.ndarray, ranges: str = "minmax") -> Student:
    """Returns a student whose ranges have followed images as in calibration, batch after batch.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      images: (N, H, W, channels), normalised.
      ranges: as `compare_bits` takes it.
    """
    starts = range(0, len(images), BATCH)
    batches = [images[at : at + BATCH] for at in starts]
    return calibrated_with(teacher, bits_of(teacher, bits), batches, ranges)


def bits_of(teacher: Teacher, bits: str) -> dict[str, Any]:
    """Returns the collection `bits` of a teacher's student.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`, or `w4a4@bits.json` with exceptions in a file.

    Raises:
      ConfigError: a bit-width is malformed, or the file is missing or of another network.
    """
    usual, at, file = bits.partition("@")
    overrides = with_files([at + file], teacher, sums=False) if at else ()
    shapes = registry.initial_variables(teacher.module, teacher.image_size)
    return assign_bits(shapes["bits"], *parse_bits(usual), overrides)


def usual_bits(bits: str) -> str:
    """Returns the `w4a4` of `w4a4@bits.json`: what holds where the file has no exception.

    Raises:
      ConfigError: it has another form.
    """
    usual = bits.partition("@")[0]
    parse_bits(usual)
    return usual


def calibrated_with(
    teacher: Teacher, bits: Mapping[str, Any], batches: Sequence[np.ndarray], ranges: str
) -> Student:
    """Returns a student of any bit-widths whose ranges have followed batches of images.

    Args:
      teacher: the network in full precision.
      bits: the collection, as `bits_of` returns it; what is not in it is not quantized.
      batches: uint8 (N, H, W, channels), or floats already normalised.
      ranges: as `compare_bits` takes it.
    """
    module = teacher.module.clone(calibration=Calibration(ranges))
    shapes = registry.initial_variables(teacher.module, teacher.image_size)
    unset = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"])
    variables = dict(teacher.variables)
    variables["bits"] = bits
    if ranges == "least_error":
        unset = with_kernel_ranges(unset, variables["params"], variables["bits"], ranges)
    variables["ranges"] = unset
    for images in batches:
        variables["ranges"] = _calibrate(module, variables, images, teacher.mean, teacher.std)
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
    kind = rows[0]["images"]
    width = max(10, *(len(row["bits"]) + 2 for row in rows))
    if dataset_name is None:
        lines = [f"{'bits':<{width}}agreement with the teacher, ranges from {kind} images"]
        lines += [f"{row['bits']:<{width}}{row['agreement']:.2%}" for row in rows]
        return "\n".join([*lines, "", f"Agreement on {kind} images: there are no real ones."])
    kinds = [name for name in _KINDS if rows[0][name] is not None]
    lines = [f"{'bits':<{width}}top-1, ranges from images that are", " " * width + _columns(kinds)]
    lines += [
        f"{row['bits']:<{width}}{_columns([format(row[kind], '.2%') for kind in kinds])}"
        for row in rows
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
