"""Evaluation sets of arrays in an .npz file."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from adadfq_jax.data.dataset import Dataset, from_arrays
from adadfq_jax.errors import DataError

_SHOWN = 8


def load_npz(path: Path) -> Dataset:
    """Reads an evaluation set from an .npz file.

    Args:
      path: a file with the arrays `x`, uint8 (N, H, W, channels), and `y`, integers (N,).

    Raises:
      DataError: the file cannot be read, or lacks such arrays.
    """
    with _opened(path) as file:
        if not {"x", "y"} <= set(file.files):
            raise DataError(
                f"{str(path)!r} must hold an array x of images and an array y of labels, and "
                f"holds {_held(file)}."
            )
        return from_arrays(file["x"], file["y"], str(path))


def load_unlabelled_npz(path: Path) -> tuple[Dataset, bool]:
    """Reads images from an .npz file, whose labels are ignored.

    Args:
      path: a file with the array `x`, uint8 (N, H, W, channels).

    Returns:
      (the images, of which each has the label 0; whether the file has labels `y`).

    Raises:
      DataError: the file cannot be read, or lacks such an array.
    """
    with _opened(path) as file:
        if "x" not in file.files:
            raise DataError(
                f"{str(path)!r} must hold an array x of images, and holds {_held(file)}."
            )
        images = file["x"]
        none = np.zeros(images.shape[:1], int)
        return from_arrays(images, none, str(path)), "y" in file.files


def _held(file: np.lib.npyio.NpzFile) -> str:
    return ", ".join(file.files[:_SHOWN]) or "none"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an .npz file; whatever fails while it is read is a DataError."""
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder, not an .npz file; source folder reads those.")
    if not path.is_file():
        raise DataError(f"there is no data file {str(path)!r}.")
    if not zipfile.is_zipfile(path):  # np.load also opens other kinds of files
        raise DataError(f"{str(path)!r} is not an .npz file, or it is cut short.")
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise DataError(f"{str(path)!r} is not a readable .npz file: {error}.") from error
        raise DataError(
            f"{str(path)!r} holds Python objects, which are not read, since that could execute any "
            "code: save x as uint8 (N, H, W, channels) and y as integers (N,)."
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{str(path)!r} is not a readable .npz file: {error}.") from error
