"""Evaluation sets of tensorflow-datasets, prepared as array_record and read without TensorFlow."""

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from adadfq_jax.data.dataset import Dataset
from adadfq_jax.data.images import decode
from adadfq_jax.errors import DataError, nearest

_SPLITS = ("test", "validation")


class _Examples:
    """Random access to a data source's images and labels."""

    def __init__(self, name: str, source: Sequence[dict[str, Any]]):
        self._name, self._source = name, source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        example = self._read(index)
        image = example["image"]
        if isinstance(image, bytes):
            image = decode(image, f"image {index} of {self._name}")
        return image, int(example["label"])

    def label(self, index: int) -> int:
        return int(self._read(index)["label"])

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return self._source[index]
        except Exception as error:  # the file is damaged
            raise DataError(f"image {index} of {self._name} cannot be read: {error}") from error


def load_tfds(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Opens the split "test" of a prepared data set that has the features `image` and `label`.

    If there is no such split, or it has no labels (as ImageNet's), the split "validation" is
    opened. If the set has only one split, that is opened.

    Args:
      name: the set's name, as `tfds.builder` takes it.
      data_dir: where data sets were prepared; None for the default of tensorflow-datasets.

    Raises:
      DataError: the data set is unknown, not prepared, or of another form.
    """
    with _quiet():
        builder = _builder(name, data_dir)
        features = builder.info.features
        _check_features(name, features)
        for split in _splits(name, builder):
            source = _open(name, builder, split, data_dir)
            if len(source) and int(source[0]["label"]) >= 0:
                shown = f"tfds:{name}, split {split}"
                names = tuple(features["label"].names)
                return Dataset(shown, _Examples(shown, source), class_names=names, encoded=True)
    raise DataError(f"tfds:{name} has no labelled images to measure on.")


def _builder(name: str, data_dir: str | Path | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir and str(data_dir))
    except tfds.core.registered.DatasetNotFoundError as error:
        base = name.partition("/")[0].partition(":")[0]
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError(f"tensorflow-datasets knows no {base!r}: {nearest(base, known)}") from error
    except Exception as error:  # a configuration or version that is not there, damaged metadata
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"tfds:{name} cannot be opened: {reason}.") from error


def _check_features(name: str, features: Any) -> None:
    wanted = {"image": tfds.features.Image, "label": tfds.features.ClassLabel}
    for field, kind in wanted.items():
        if not isinstance(dict(features or {}).get(field), kind):
            raise DataError(
                f"tfds:{name} is no set of labelled images: it needs the features 'image' and "
                f"'label', and has {', '.join(features or ()) or 'none'}."
            )


def _splits(name: str, builder: tfds.core.DatasetBuilder) -> list[str]:
    known = list(builder.info.splits)
    if len(known) == 1:
        return known
    usable = [split for split in _SPLITS if split in known]
    if known and not usable:
        raise DataError(f"tfds:{name} has no split 'test' or 'validation', but {', '.join(known)}.")
    return usable or list(_SPLITS)  # a set that is not prepared lists no splits


def _open(name: str, builder, split: str, data_dir) -> Sequence[dict[str, Any]]:
    try:
        source = builder.as_data_source(split)
    except Exception as error:
        known = bool(builder.info.splits)
        folder = data_dir or ("OTHER_FOLDER" if known else None)
        command = ["./launch/prepare_data.sh", name]
        if folder:
            command.append(f"--data_dir={folder}")
        if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            command.append("--manual_dir=FOLDER_OF_ITS_ARCHIVES")
        state = "prepared, but not as array_record" if known else "not prepared"
        raise DataError(
            f"tfds:{name} is {state} in {str(builder.data_dir)!r}; prepare it once with: "
            f"{shlex.join(command)}"
        ) from error
    # Images are decoded by `images.decode`: tensorflow-datasets would decode the indices of a
    # palette as shades of grey.
    source.decoders = {"image": tfds.decode.SkipDecoding()}
    return source


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tensorflow-datasets from logging errors that are raised here as a DataError."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
