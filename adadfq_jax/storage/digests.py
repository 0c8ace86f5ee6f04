"""SHA-256 of arrays: to recognise a teacher, and a checkpoint that is not what was written."""

import hashlib
from collections.abc import Mapping

import numpy as np


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the hexadecimal SHA-256 of named arrays: names, types, shapes and bytes.

    Args:
      arrays: by name; their order does not matter.
    """
    result = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        result.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        result.update(array.tobytes())
    return result.hexdigest()
