"""SHA-256 of arrays and files: to recognise a teacher, and what is not what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

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


def checksum(described: Mapping[str, Any], content: Mapping[str, np.ndarray] | bytes) -> str:
    """Returns the hexadecimal SHA-256 of a file: of what it says of itself, and of the rest.

    Args:
      described: what it says, as JSON, without the checksum.
      content: its arrays by name, or its other bytes.
    """
    rest = content if isinstance(content, bytes) else digest(content).encode()
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode() + rest).hexdigest()
