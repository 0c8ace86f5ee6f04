"""Students that are calibrated but not trained: the accuracy that training has to improve."""

import functools
import time
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
from adadfq_jax.game import procedural
from adadfq_jax.models import registry
from adadfq_jax.models.network import Student, Teacher, normalize
from adadfq_jax.quantization.bits import assign_bits, parse_bits
from adadfq_jax.training.progress import Progress
from adadfq_jax.training.quantize import quantize

# Images of a step; images that ranges follow, in batches of that size; and images on which a
# student is compared with its teacher.
_BATCH, _FOLLOWED, _COMPARED = 16, 1024, 1024


def compare_bits(
    teacher: Teacher,
    bits: Sequence[str],
    dataset: Dataset | None = None,
    *,
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
      bits: bit-widths written like `w4a4`.
      dataset: an evaluation set; None measures only the agreement with the teacher.
      calibration: number of its images that give the ranges "from real images".
      epochs: epochs of 200 calibration steps that give the ranges "from generated images".
      batch_size: images at a time when measuring.
      quick: whether procedural images take the place of generated ones, so that nothing is trained.
      show_progress: whether to show on stderr what is done and how long it takes.

    Returns:
      One dict for each bit-width: `bits`; `images`, "generated" or "procedural"; `agreement`, the
      share of such images on which the student with ranges from them agrees with the teacher;
      `generated` (also where `images` are procedural) and `real`, top-1 with ranges from those and
      from real images, None without a dataset; `real_images`, the number of real images that gave
      the ranges.

    Raises:
      ConfigError: a bit-width is malformed, or a number is not positive.
      DataError: the set does not fit the teacher.
    """
    for name, value in (("calibration", calibration), ("epochs", epochs)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.")
    for text in bits:
        parse_bits(text)
    progress = Progress(len(bits), show_progress)
    few = None if dataset is None else dataset.sample(calibration).images(teacher.image_size)
    widest = max(bits, key=lambda text: sum(parse_bits(text)))
    trained = None
    if quick:
        images = procedural_images(teacher, _FOLLOWED + _COMPARED)
        followed, compared = images[:_FOLLOWED], images[_FOLLOWED:]
    else:
        progress.say(f"one generator for {', '.join(bits)}, trained with {widest}")
        trained = calibrated_on_generated(teacher, widest, epochs, show_progress)
        compared, _ = trained.draw(_COMPARED)
        # Images after those, of batches as a step has them, since G normalises by the batch.
        followed = trained.draw(len(compared) + _FOLLOWED, _BATCH)[0][len(compared) :]

    def top1(student: Student) -> float | None:
        return None if dataset is None else evaluate(student, dataset, batch_size)["top1"]

    rows, began = [], time.monotonic()
    expected = np.asarray(teacher(compared)).argmax(-1)
    for number, text in enumerate(bits):
        left = (time.monotonic() - began) / number * (len(bits) - number) if number else None
        about = "" if left is None else f", about {left:.0f} s left"
        progress.say(f"{text}, {number + 1} of {len(bits)}: measuring{about}")
        student = trained
        if quick or text != widest:
            student = following(teacher, text, followed)
        rows.append(
            {
                "bits": text,
                "images": "procedural" if quick else "generated",
                "agreement": float(np.mean(np.asarray(student(compared)).argmax(-1) == expected)),
                "generated": top1(student),
                "real": None if few is None else top1(calibrated_on(teacher, text, few)),
                "real_images": 0 if few is None else len(few),
            }
        )
    return rows


def procedural_images(teacher: Teacher, count: int) -> np.ndarray:
    """Draws the same procedural images at each call, (count, H, W, 3), normalised."""
    given = teacher.image_size, tuple(teacher.mean), tuple(teacher.std)
    starts = range(0, count, _BATCH)
    parts = [
        procedural.draw(jax.random.key(0), start + jnp.arange(_BATCH), *given) for start in starts
    ]
    return np.concatenate(parts)[:count]


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
    counts = range(1, jax.device_count() + 1)
    config.devices = max(count for count in counts if config.batch_size % count == 0)
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
    # One update sets each range, since the first value of a bias-corrected average is the average.
    return _student(teacher, bits, [images])


def following(teacher: Teacher, bits: str, images: np.ndarray) -> Student:
    """Returns a student whose ranges have followed images as in calibration, batch after batch.

    Args:
      teacher: the network in full precision.
      bits: bit-widths written like `w4a4`.
      images: (N, H, W, 3), normalised.
    """
    starts = range(0, len(images), _BATCH)
    return _student(teacher, bits, [images[start : start + _BATCH] for start in starts])


def _student(teacher: Teacher, bits: str, batches: Sequence[np.ndarray]) -> Student:
    shapes = registry.initial_variables(teacher.module, teacher.image_size)
    unset = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"])
    variables = dict(teacher.variables)
    variables["bits"] = assign_bits(shapes["bits"], *parse_bits(bits), ())
    variables["ranges"] = unset
    for images in batches:
        variables["ranges"] = _calibrate(
            teacher.module, variables, images, teacher.mean, teacher.std
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
    kind = rows[0]["images"]
    if dataset_name is None:
        lines = [f"{'bits':<10}agreement with the teacher, ranges from {kind} images"]
        lines += [f"{row['bits']:<10}{row['agreement']:.2%}" for row in rows]
        return "\n".join([*lines, "", f"Agreement on {kind} images: there are no real ones."])
    lines = [f"{'bits':<10}{f'top-1, ranges from {kind} images':<38}from real images"]
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
