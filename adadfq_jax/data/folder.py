"""Evaluation sets of image files, one folder a class."""

import os
from pathlib import Path

import numpy as np

from adadfq_jax.data.dataset import Dataset
from adadfq_jax.data.images import decode
from adadfq_jax.errors import DataError

_SUFFIXES = (".jpg", ".jpeg", ".png")


class _Files:
    """Random access to decoded image files."""

    def __init__(self, files: list[tuple[str, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        path, label = self._files[index]
        return decode(Path(path).read_bytes(), repr(path)), label

    def label(self, index: int) -> int:
        return self._files[index][1]


def load_folder(path: Path) -> Dataset:
    """Finds the images `class/name.jpg` (or .jpeg, .png, in any case); other files are ignored.

    Classes are numbered in the order of their folders' names, of which each counts, empty or not.
    Names are compared as text: `10` comes before `2`.

    Raises:
      DataError: there is no such folder, or no image in it.
    """
    if not path.is_dir():
        raise DataError(f"there is no image folder {str(path)!r}.")
    classes = [entry.name for entry in _visible(path) if entry.is_dir()]
    files = [
        (entry.path, label)
        for label, name in enumerate(classes)
        for entry in _visible(path / name)
        if entry.name.lower().endswith(_SUFFIXES) and entry.is_file()
    ]
    if not files:
        raise DataError(
            f"there are no images in {str(path)!r}: expected {path.name or '.'}/CLASS/NAME.jpg, "
            f".jpeg or .png, and found {len(classes)} class folders."
        )
    return Dataset(str(path), _Files(files), class_names=tuple(classes), encoded=True)


def _visible(path: Path) -> list[os.DirEntry]:
    with os.scandir(path) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    return sorted(found, key=lambda entry: entry.name)
