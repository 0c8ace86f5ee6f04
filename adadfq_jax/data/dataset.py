"""An evaluation set, the pipeline that reads it in batches, and checks that it fits a network."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adadfq_jax.data.images import fit
from adadfq_jax.errors import DataError

_LARGEST_POOL = 16
_AT_A_TIME = 64  # images of a batch when all images are read


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labelled images in random access.

    Attributes:
      name: name of the set in messages.
      records: `records[i]` is (image, label): uint8 (H, W, channels) and an int. Records of
        encoded images also have a method `label(i)`, which decodes no image.
      labels: smallest and largest label; None where every image would have to be read for them.
      class_names: names of the classes in the order of the labels; None where they are unknown.
      encoded: whether images are decoded when they are read. These may have any size, and `batches`
        resizes them; other images must have the network's size.
      advice: what to do if the classes are not those of a network, as the end of a sentence.
    """

    name: str
    records: Sequence[tuple[np.ndarray, int]]
    labels: tuple[int, int] | None = None
    class_names: tuple[str, ...] | None = None
    encoded: bool = False
    advice: str = ""

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, count: int, seed: int = 0) -> "Dataset":
        """Returns a set of `count` images (or all, if there are fewer), drawn at random."""
        order = np.random.default_rng(seed).permutation(len(self))[:count]
        return dataclasses.replace(self, records=_Chosen(self.records, order))

    def stratified(self, count: int, seed: int = 0) -> "Dataset":
        """Returns a set of `count` images in which classes have the same shares as in this set.

        Args:
          count: number of images.
          seed: seed of the choice within each class.

        Raises:
          DataError: this set has fewer images.
        """
        if count > len(self):
            raise DataError(
                f"{self.name} has {len(self)} images, too few for a subset of {count}; choose at "
                f"most {len(self)}, or 0 for all (--config.evaluation.subset)."
            )
        label = getattr(self.records, "label", lambda index: self.records[index][1])
        labels = [label(index) for index in range(len(self))]
        by_class = np.lexsort((np.random.default_rng(seed).random(len(self)), labels))
        # Evenly spaced over the classes, so that each gets its share, rounded up or down.
        chosen = by_class[np.arange(count) * len(self) // count]
        return dataclasses.replace(self, records=_Chosen(self.records, chosen))

    def images(self, network: Any = None) -> np.ndarray:
        """Returns all images as one array.

        Args:
          network: what takes them, as `batches` needs it.

        Returns:
          uint8 (N, H, W, channels).
        """
        return np.concatenate([images for images, _ in self.batches(_AT_A_TIME, network)])

    def batches(
        self,
        batch_size: int,
        network: Any = None,
        *,
        shard: int = 0,
        shards: int = 1,
        workers: int | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields every image of a shard once, in order.

        Args:
          batch_size: images at a time; the last batch may be short.
          network: what takes the images, as `images.fit` knows it; needed where images are encoded.
          shard, shards: index of the part to read, and number of parts. A part consists of the
            images shard, shard + shards, …
          workers: threads that read, decode and resize; by default one for each core where images
            are encoded, and none where they are in memory.

        Yields:
          Images, uint8 (b, H, W, channels), and labels, int32 (b,).
        """
        if shard >= len(self):
            return
        # Not at the top: it is imported for a second, in vain where no image is read, and speed is
        # measured where it is not installed.
        import grain

        if workers is None:
            workers = min(os.cpu_count() or 1, _LARGEST_POOL) if self.encoded else 0
        pipeline = grain.MapDataset.source(self.records)[shard::shards]
        if self.encoded:
            pipeline = pipeline.map(lambda record: (fit(record[0], network), record[1]))
        # At most a batch is read ahead, so that large images do not fill the memory.
        ahead = max(workers, batch_size) if workers else 0
        options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
        for images, labels in pipeline.to_iter_dataset(options).batch(batch_size):
            yield images, labels.astype(np.int32)


class _Chosen:
    """Random access to some of the records."""

    def __init__(self, records: Sequence[tuple[np.ndarray, int]], order: np.ndarray):
        self._records, self._order = records, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._records[int(self._order[index])]


class _ArrayRecords:
    """Random access to two arrays: the `Dataset.records` of images in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], self._labels[index]


def from_arrays(images: np.ndarray, labels: np.ndarray, name: str = "arrays") -> Dataset:
    """Makes an evaluation set of arrays in memory.

    Args:
      images: uint8 (N, H, W, channels), or (N, H, W) of one channel.
      labels: integers (N,).
      name: name of the set in messages.

    Raises:
      DataError: the arrays are not of this form, or empty.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or _channels_first(images):
        raise DataError(
            f"{name}: images must be uint8 of shape (N, H, W, channels), not {images.dtype} "
            f"{images.shape}{_hint_of_images(images)}."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{name}: labels must be integers of shape ({len(images)},), not {labels.dtype} "
            f"{labels.shape}{_hint_of_labels(labels)}."
        )
    if not len(images):
        raise DataError(f"{name}: there are no images.")
    if images.max() == 1:
        raise DataError(
            f"{name}: no pixel is above 1, so that all images are black; uint8 pixels are from 0 "
            "to 255, so multiply by 255 before rounding."
        )
    return Dataset(name, _ArrayRecords(images, labels), (int(labels.min()), int(labels.max())))


def _channels_first(images: np.ndarray) -> bool:
    """Whether images look like (N, channels, H, W): a few channels, then two equal sides."""
    _, first, second, third = images.shape
    return first in (1, 3) and second == third > 4


def _hint_of_images(images: np.ndarray) -> str:
    if images.ndim == 4 and _channels_first(images):
        return "; images.transpose(0, 2, 3, 1) puts the channels last"
    if np.issubdtype(images.dtype, np.floating) and images.size:
        if not images.min() >= 0:
            return (
                "; these look normalised or are not all numbers: give the pixels from before mean "
                "and std"
            )
        factor = "255 * " if images.max() <= 1 else ""
        return f"; write ({factor}images).round().astype('uint8') of pixels without normalisation"
    if images.dtype == np.uint16:
        return "; 16 bits become 8 by (images / 257).round().astype('uint8')"
    return ""


def _hint_of_labels(labels: np.ndarray) -> str:
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "; labels[:, 0] takes the second dimension away"
    if labels.ndim == 2:
        return "; labels.argmax(1) makes class numbers of one row a class"
    return ""


def check_fits(dataset: Dataset, network: Any) -> None:
    """Checks that a set has a network's classes and image size, without reading all images.

    Args:
      dataset: the evaluation set.
      network: a network, or an exported one.

    Raises:
      DataError: the set does not fit the network.
    """
    names = dataset.class_names
    if names is not None and len(names) != network.classes:
        raise DataError(
            f"{dataset.name} has {len(names)} classes ({shortened(names)}), but the teacher has "
            f"{network.classes}{_advised(dataset)}."
        )
    known = getattr(network, "class_names", None)
    if names and known and names != tuple(known) and sorted(names) == sorted(known):
        place = next(index for index, name in enumerate(known) if names[index] != name)
        raise DataError(
            f"{dataset.name} has the network's classes in another order: class {place} is "
            f"{names[place]!r}, and of the network {known[place]!r}{_advised(dataset)}."
        )
    if dataset.labels is not None:
        check_labels(dataset, dataset.labels, network)
    if dataset.encoded:
        if network.channels not in (1, 3):
            raise DataError(
                f"{dataset.name} has image files, of colours or grey, but the teacher takes images "
                f"of {_counted(network.channels)}: give them as npz."
            )
        return
    image, _ = dataset.records[0]
    size = network.image_size
    if image.shape[:2] != (size, size):
        raise DataError(
            f"{dataset.name} has images of {image.shape[0]}x{image.shape[1]} pixels, but the "
            f"teacher takes {size}x{size}."
        )
    if image.shape[2] != network.channels:
        raise DataError(
            f"{dataset.name} has images of {_counted(image.shape[2])}, but the teacher takes "
            f"{_counted(network.channels)}."
        )


def _counted(channels: int) -> str:
    return f"{channels} channel{'s' * (channels != 1)}"


def shortened(names: Sequence[str]) -> str:
    """Returns names in one line: all of up to four, else the first three, … and the last."""
    return ", ".join(names if len(names) <= 4 else [*names[:3], "…", names[-1]])


def check_labels(dataset: Dataset, labels: Sequence[int] | np.ndarray, network: Any) -> None:
    """Checks that labels are classes of a network.

    Args:
      dataset: the set that the labels are of, for the message.
      labels: some or all labels of the set.
      network: a network, or an exported one, with `classes`.

    Raises:
      DataError: a label is no class of the network.
    """
    for label in (min(labels), max(labels)):
        if not 0 <= label < network.classes:
            raise DataError(
                f"{dataset.name} has a label {label}, but the network knows classes 0 to "
                f"{network.classes - 1}{_advised(dataset)}."
            )


def _advised(dataset: Dataset) -> str:
    return dataset.advice and f"; {dataset.advice}"
