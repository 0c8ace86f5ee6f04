"""Evaluation sets of arrays in an .npz file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from adadfq_jax.data.dataset import Dataset, from_arrays
from adadfq_jax.errors import DataError


def load_npz(path: Path) -> Dataset:
    """Reads `x`, uint8 (N, H, W, 3), and `y`, integers (N,).

    Raises:
      DataError: the file cannot be read, or holds something else.
    """
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
