"""Pictures of what the generator makes."""

import io

import numpy as np
from PIL import Image, ImageDraw

_MARGIN = 2
_LABEL_WIDTH = 28
_SMALLEST_SIDE = 48  # small images are enlarged, pixel by pixel, to be seen


def pixels(images: np.ndarray, mean, std) -> np.ndarray:
    """Takes the normalisation off images: uint8 pixels of the same shape (N, H, W, 3)."""
    values = np.clip(np.asarray(images) * np.asarray(std) + np.asarray(mean), 0, 1)
    return (255 * values).round().astype(np.uint8)


def grid(images: np.ndarray, labels: np.ndarray, mean, std, columns: int = 10) -> bytes:
    """Draws a grid of images, one labelled row per class.

    Args:
      images: (N, H, W, 3), normalised.
      labels: (N,) the classes they were made for.
      mean, std: the normalisation, per channel of pixels in [0, 1].
      columns: images of each class, at most.

    Returns:
      A PNG file.
    """
    shown = pixels(images, mean, std)
    side = images.shape[1] * max(1, -(-_SMALLEST_SIDE // images.shape[1]))
    cell = side + _MARGIN
    classes = np.unique(labels)
    picture = Image.new("RGB", (_LABEL_WIDTH + columns * cell, len(classes) * cell), "white")
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(classes):
        draw.text((4, row * cell + side // 2 - 6), str(label), fill="black")
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            tile = Image.fromarray(shown[index]).resize((side, side), Image.Resampling.NEAREST)
            picture.paste(tile, (_LABEL_WIDTH + column * cell, row * cell))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
