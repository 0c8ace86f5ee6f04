"""Evaluation sets of arrays in an .npz file."""

import zipfile
import zlib
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
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder, not an .npz file; source folder reads those.")
    if not path.is_file():
        raise DataError(f"there is no data file {str(path)!r}.")
    if not zipfile.is_zipfile(path):  # np.load also opens other kinds of files
        raise DataError(f"{str(path)!r} is not an .npz file, or it is cut short.")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not {"x", "y"} <= set(file.files):
                held = ", ".join(file.files[:_SHOWN]) or "none"
                raise DataError(
                    f"{str(path)!r} must hold an array x of images and an array y of labels, and "
                    f"holds {held}."
                )
            return from_arrays(file["x"], file["y"], str(path))
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise DataError(f"{str(path)!r} is not a readable .npz file: {error}.") from error
        raise DataError(
            f"{str(path)!r} holds Python objects, which are not read, since that could execute any "
            "code: save x as uint8 (N, H, W, channels) and y as integers (N,)."
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{str(path)!r} is not a readable .npz file: {error}.") from error
