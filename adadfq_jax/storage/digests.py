"""SHA-256 of arrays and files, to identify a teacher and to find damaged files."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


def digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the hexadecimal SHA-256 of named arrays: names, types, shapes and bytes.

    Args:
      arrays: arrays by name; their order does not matter.
    """
    result = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        result.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        result.update(array.tobytes())
    return result.hexdigest()


def checksum(described: Mapping[str, Any], content: Mapping[str, np.ndarray] | bytes) -> str:
    """Returns the hexadecimal SHA-256 of an exported file: its description and its content.

    Args:
      described: the file's description, which JSON can hold, without the checksum.
      content: the file's arrays by name, or the rest of its bytes.
    """
    rest = content if isinstance(content, bytes) else digest(content).encode()
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode() + rest).hexdigest()
