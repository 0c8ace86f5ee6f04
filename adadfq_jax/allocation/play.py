"""Short runs at the chosen bits and at uniform ones within the same budget, and which kept more."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from adadfq_jax.allocation.chosen import Allocation
from adadfq_jax.config.bounds import check_source
from adadfq_jax.config.fields import default_config, leave_to_teacher
from adadfq_jax.data.dataset import check_fits
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import ConfigError
from adadfq_jax.evaluation.accuracy import logits_of, percent
from adadfq_jax.models.network import Teacher
from adadfq_jax.training.quantize import quantize

METHOD = "adadfq_plus"
_BATCH = 64
_CALIBRATION = 2  # epochs, or half of a shorter run


def data_of(
    epochs: int | None, source: str | None, path: str | None, labels: str | None
) -> dict[str, Any]:
    """Returns the fields of `data` of the runs; none without images to measure on.

    Raises:
      ConfigError: there are images but no runs, or the source is unknown.
    """
    given = {"source": source, "path": path, "labels": labels}
    given = {f"data.{name}": value for name, value in given.items() if value}
    if given and not epochs:
        raise ConfigError("--source, --path and --labels are of --play=EPOCHS.")
    if given:
        check_source("--source", source or "none")
    return given


def check_images(teacher: Teacher, data: dict[str, Any]) -> None:
    """Opens the images to measure on, so that wrong ones are told before anything is measured.

    Args:
      teacher: the network.
      data: as `data_of` returns it.

    Raises:
      DataError: they cannot be read, or do not fit the teacher.
    """
    fields = ("data.source", "data.path", "data.labels")
    dataset = load_dataset(*(data.get(name) for name in fields)) if data else None
    if dataset is not None:
        check_fits(dataset, teacher)


def play(
    found: Allocation, epochs: int, data: dict[str, Any], *, show_progress: bool = True
) -> list[dict[str, Any]]:
    """Trains a student of the chosen bits and one of uniform bits within the budget.

    Args:
      found: the allocation.
      epochs: of 200 steps, of each run.
      data: as `data_of` returns it.
      show_progress: whether to show a progress bar on stderr.

    Returns:
      One dict for each: `bits`; `agreement`, the share of held-out images on which it agrees with
      the teacher; `calibrated_top1` and `top1`, None where there are no images.

    Raises:
      ConfigError, DataError, DivergedError: as `quantize`.
    """
    usual = found.uniform_bits
    expected = logits_of(found.teacher, found.held_out, _BATCH).argmax(-1)
    rows = []
    for name, overrides in (("chosen", found.overrides), (f"w{usual}a{usual}", found.fixed)):
        config = leave_to_teacher(default_config(f"w{usual}a{usual}")).copy_and_resolve_references()
        config.game.method = METHOD
        config.epochs = epochs
        config.calibration_epochs = config.warmup_epochs = min(_CALIBRATION, epochs // 2)
        config.quant.overrides, config.quant.sums = overrides, found.sums
        counts = range(1, jax.device_count() + 1)
        config.devices = max(count for count in counts if config.batch_size % count == 0)
        config.update_from_flattened_dict(data)
        student = quantize(config, found.teacher, show_progress=show_progress)
        agreed = logits_of(student, found.held_out, _BATCH).argmax(-1) == expected
        rows.append(
            {
                "bits": name,
                "agreement": float(np.mean(agreed)),
                "calibrated_top1": student.result.calibrated_top1,
                "top1": student.result.top1,
            }
        )
    return rows


def played_table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats what `play` returned, and says which kept more."""
    measured = rows[0]["top1"] is not None
    lines = [f"{'short runs':<22}{'agreement':>12}" + f"{'calibrated':>12}{'top-1':>12}" * measured]
    for row in rows:
        line = f"{row['bits']:<22}{percent(row['agreement']):>12}"
        if measured:
            line += f"{percent(row['calibrated_top1']):>12}{percent(row['top1']):>12}"
        lines.append(line)
    chosen, uniform = ((row["top1"] if measured else row["agreement"]) for row in rows)
    what = "of top-1" if measured else "of agreement on held-out images"
    if chosen == uniform:
        return "\n".join([*lines, f"both kept as much {what}"])
    more = "the chosen bits" if chosen > uniform else "uniform bits"
    return "\n".join([*lines, f"{more} kept more {what}, by {percent(abs(chosen - uniform))}"])
