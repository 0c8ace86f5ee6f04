"""A run's log and pictures as events for TensorBoard."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from adadfq_jax.reporting.history import History

# Ends the names of our event files. TensorBoard would show other files in the folder as this run's.
SUFFIX = ".adadfq_jax"


def write_events(folder: Path, history: History, pictures: Sequence[tuple[int, bytes]]) -> None:
    """Writes curves, evaluations and pictures, and removes those that an earlier call wrote.

    Args:
      folder: where to write the events.
      history: the run's log.
      pictures: pictures that the run drew during training, (step, PNG).
    """
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink()
    with SummaryWriter(str(folder), filename_suffix=SUFFIX) as writer:
        for name, (steps, values) in history.curves.items():
            for step, value in zip(steps, values, strict=True):
                writer.add_scalar(f"training/{name}", value, int(step))
        for record in history.evaluations:
            for name, value in record.items():
                if name != "step" and isinstance(value, float):
                    writer.add_scalar(f"evaluation/{name}", value, record["step"])
        for step, png in pictures:
            picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
            writer.add_image("generated", picture, step, dataformats="HWC")
