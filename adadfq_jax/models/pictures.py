"""PNG pictures of a generator's images, many images in one picture."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin

# Written into each picture under "Software", so that `is_own` recognises it.
SOFTWARE = "adadfq_jax"

_MARGIN = 2
_LABEL_WIDTH = 28
_HEADING_HEIGHT = 16
_SMALLEST_SIDE = 48  # smaller images are enlarged by a whole factor, to be visible


def pixels(images: np.ndarray, mean, std) -> np.ndarray:
    """Undoes a normalisation, to uint8 pixels.

    Args:
      images: (N, H, W, channels), normalised.
      mean, std: the normalisation, per channel of pixels in [0, 1].

    Returns:
      Pixels of the same shape; values outside black and white are cut off.
    """
    values = np.clip(np.asarray(images) * np.asarray(std) + np.asarray(mean), 0, 1)
    return (255 * values).round().astype(np.uint8)


def to_image(shown: np.ndarray) -> Image.Image:
    """Returns pixels (H, W, channels) as a picture: three in colours, others as one grey."""
    if shown.shape[-1] == 3:
        return Image.fromarray(shown)
    return Image.fromarray(shown.mean(-1).round().astype(np.uint8))


def draw_grid(images: np.ndarray, labels: np.ndarray, mean, std, columns: int = 10) -> bytes:
    """Draws a grid of images, one labelled row per class.

    Args:
      images: (N, H, W, channels), normalised.
      labels: (N,) classes that the images were made for.
      mean, std: the normalisation, per channel of pixels in [0, 1].
      columns: most images of a class that are shown.

    Returns:
      A PNG file.
    """
    tiles = _tiles(images, mean, std)
    side = tiles[0].width
    cell = side + _MARGIN
    classes = np.unique(labels)
    picture = Image.new("RGB", (_LABEL_WIDTH + columns * cell, len(classes) * cell), "white")
    draw = ImageDraw.Draw(picture)
    for row, label in enumerate(classes):
        draw.text((4, row * cell + side // 2 - 6), str(label), fill="black")
        for column, index in enumerate(np.flatnonzero(labels == label)[:columns]):
            picture.paste(tiles[index], (_LABEL_WIDTH + column * cell, row * cell))
    return to_png(picture)


def draw_strip(images: np.ndarray, mean, std) -> bytes:
    """Draws images in one row.

    Args:
      images: (N, H, W, channels), normalised.
      mean, std: the normalisation, per channel of pixels in [0, 1].

    Returns:
      A PNG file.
    """
    tiles = _tiles(images, mean, std)
    cell = tiles[0].width + _MARGIN
    picture = Image.new("RGB", (len(tiles) * cell - _MARGIN, tiles[0].height), "white")
    for column, tile in enumerate(tiles):
        picture.paste(tile, (column * cell, 0))
    return to_png(picture)


def _tiles(images: np.ndarray, mean, std) -> list[Image.Image]:
    side = images.shape[1] * max(1, -(-_SMALLEST_SIDE // images.shape[1]))
    return [
        to_image(shown).resize((side, side), Image.Resampling.NEAREST)
        for shown in pixels(images, mean, std)
    ]


def side_by_side(pictures: Sequence[tuple[str, bytes]]) -> bytes:
    """Joins grids of equal rows under headings; only the leftmost grid keeps the row labels.

    Args:
      pictures: (heading, PNG file from `draw_grid`) for each grid, left to right.

    Returns:
      A PNG file.
    """
    parts = []
    for index, (heading, png) in enumerate(pictures):
        picture = Image.open(io.BytesIO(png)).convert("RGB")
        left = _LABEL_WIDTH if index else 0
        parts.append((heading, picture.crop((left, 0, picture.width, picture.height))))
    gap = 4 * _MARGIN
    width = sum(picture.width + gap for _, picture in parts)
    height = max(picture.height for _, picture in parts) + _HEADING_HEIGHT
    joined = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(joined)
    place = 0
    for index, (heading, picture) in enumerate(parts):
        draw.text((place + (0 if index else _LABEL_WIDTH), 2), heading, fill="black")
        joined.paste(picture, (place, _HEADING_HEIGHT))
        place += picture.width + gap
    return to_png(joined)


def to_png(picture: Image.Image) -> bytes:
    """Returns a picture as a PNG file that `is_own` recognises."""
    file, said = io.BytesIO(), PngImagePlugin.PngInfo()
    said.add_text("Software", SOFTWARE)
    picture.save(file, "PNG", pnginfo=said)
    return file.getvalue()


def is_own(path: Path) -> bool:
    """Tells whether a file is a picture that `to_png` wrote."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            return picture.info.get("Software") == SOFTWARE
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for files of other kinds
        return False
