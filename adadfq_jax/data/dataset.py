"""Evaluation sets: real images that measure a network and never train one."""

import dataclasses
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np

from adadfq_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images in random access.

    Attributes:
      name: for people.
      records: `records[i]` is (image, label): uint8 (H, W, 3) and an int.
      labels: smallest and largest label, where they are known without reading every image.
    """

    name: str
    records: Sequence[tuple[np.ndarray, int]]
    labels: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def batches(self, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields every image once, in order: uint8 (b, H, W, 3) and int32 (b,), the last short."""
        pipeline = grain.MapDataset.source(self.records).batch(batch_size)
        for images, labels in pipeline:
            yield images, labels.astype(np.int32)


class _ArrayRecords:
    """Random access to two arrays; what `Dataset.records` is for data in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], self._labels[index]


def from_arrays(images: np.ndarray, labels: np.ndarray, name: str = "arrays") -> Dataset:
    """Makes an evaluation set of arrays in memory.

    Args:
      images: uint8 (N, H, W, 3).
      labels: integers (N,).
      name: for people.

    Raises:
      DataError: the arrays are not of this form, or empty.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(
            f"{name}: images must be uint8 of shape (N, H, W, 3), not {images.dtype} "
            f"{images.shape}."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name}: labels must be integers of shape ({len(images)},), not {labels.dtype} "
            f"{labels.shape}."
        )
    if not len(images):
        raise DataError(f"{name}: there are no images.")
    return Dataset(name, _ArrayRecords(images, labels), (int(labels.min()), int(labels.max())))


def load_dataset(source: str, path: str | Path | None = None) -> Dataset | None:
    """Opens an evaluation set.

    Args:
      source: "npz", or "none" for no data at all.
      path: for "npz", a file with `x`, uint8 (N, H, W, 3), and `y`, integers (N,).

    Returns:
      The set, or None for "none".

    Raises:
      DataError: it cannot be read.
    """
    if source == "none":
        return None
    if source == "npz":
        return _load_npz(Path(path))
    raise DataError(f"unknown data source {source!r}; known: none, npz.")


def _load_npz(path: Path) -> Dataset:
    if not path.is_file():
        raise DataError(f"there is no data file {str(path)!r}.")
    if not zipfile.is_zipfile(path):  # np.load also opens other kinds of files
        raise DataError(f"{str(path)!r} is not an .npz file, or it is cut short.")
    try:
        with np.load(path, allow_pickle=False) as file:
            return from_arrays(file["x"], file["y"], str(path))
    except KeyError as error:
        raise DataError(f"{str(path)!r} must hold arrays 'x' and 'y': {error}.") from error
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{str(path)!r} is not a readable .npz file: {error}.") from error


def check_fits(dataset: Dataset, network: Any) -> None:
    """Raises DataError where a set's first image, or a label it tells, does not fit a network."""
    image, _ = dataset.records[0]
    size = network.image_size
    if image.shape != (size, size, 3):
        raise DataError(
            f"{dataset.name} has images of {image.shape[0]}x{image.shape[1]} pixels, but the "
            f"teacher takes {size}x{size}."
        )
    if dataset.labels is not None:
        check_labels(dataset, dataset.labels, network)


def check_labels(dataset: Dataset, labels: Sequence[int] | np.ndarray, network: Any) -> None:
    """Raises DataError where one of a set's labels is none of a network's classes."""
    for label in (min(labels), max(labels)):
        if not 0 <= label < network.classes:
            raise DataError(
                f"{dataset.name} has a label {label}, but the network knows classes 0 to "
                f"{network.classes - 1}."
            )
