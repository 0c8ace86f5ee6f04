"""This project's own teacher file, which says all that there is to know about its network.

One safetensors file: the variables by name, and under the metadata key `adadfq` one JSON string:

  architecture, classes, image_size, mean, std   what is needed to run the network
  preparation                                    how image files become its images, if not as usual
  graph                                          its nodes, where its name alone does not say them
  source                                         SHA-256 of the file that it was converted from
  keys                                           that file's names, see `naming.by_code`
  checksum                                       SHA-256 of all the rest

The last five may be missing. The same teacher gives the same bytes.
"""

import itertools
import json
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import safetensors
import safetensors.numpy

from adadfq_jax.errors import ConfigError, TeacherError, nearest
from adadfq_jax.models import registry
from adadfq_jax.models.graph import GraphNetwork, to_json
from adadfq_jax.models.network import Network, flatten
from adadfq_jax.models.preparation import preparation_of
from adadfq_jax.storage.digests import checksum
from adadfq_jax.storage.files import write_whole
from adadfq_jax.teachers.naming import by_code
from adadfq_jax.teachers.normalisation import fault, is_mean, is_std

# Side in pixels; a layer of a larger image alone would take gigabytes.
LARGEST_IMAGE = 2048
_METADATA_KEY = "adadfq"
_DTYPES = ("F32", "F64")
_DEEPEST = 16  # of the metadata's lists and objects in each other; a graph's padding is the fifth


def is_own(path: Path) -> bool:
    """Tells whether a safetensors file was written by `write_native`.

    Raises:
      TeacherError: it is no readable safetensors file.
    """
    return _METADATA_KEY in _metadata(path)


def write_native(teacher: Network, path: Path, source: str | None, keys: str | None) -> None:
    """Writes a teacher: under another name first, so that the file is there whole or not at all.

    Args:
      teacher: the network.
      path: the file.
      source: SHA-256 of the file that it was converted from, if it was.
      keys: the code of that file's convention.

    Raises:
      TeacherError: the file cannot be written, or could not be read again.
    """
    if found := fault(teacher.mean, teacher.std):
        raise TeacherError(f"{str(path)!r} cannot be written: {found}")
    arrays = flatten(teacher.variables)
    described = {
        "architecture": teacher.architecture,
        "classes": teacher.classes,
        "image_size": teacher.image_size,
        "mean": list(teacher.mean),
        "std": list(teacher.std),
        **teacher.preparation.described(),
    }
    if isinstance(teacher.module, GraphNetwork):
        described["graph"] = to_json(teacher.module.nodes)
    if source is not None:
        described["source"] = source
    if keys is not None:
        described["keys"] = keys
    described["checksum"] = checksum(described, arrays)
    # One key, because safetensors writes several in random order.
    content = safetensors.numpy.save(arrays, {_METADATA_KEY: json.dumps(described, sort_keys=True)})
    try:
        write_whole(path, content)
    except OSError as error:
        raise TeacherError(f"{str(path)!r} cannot be written: {error.strerror}.") from error


def read_native(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads and checks a file of `write_native`.

    Returns:
      (what its metadata say, and the `module` and `preparation` that they describe; its variables
      by name).

    Raises:
      TeacherError: the file is damaged or does not say enough.
    """
    name = repr(str(path))
    described = _described(name, _metadata(path)[_METADATA_KEY])
    try:
        with safetensors.safe_open(path, "numpy") as file:
            names = list(file.keys())
            for key in names:
                if (kind := file.get_slice(key).get_dtype()) not in _DTYPES:
                    raise TeacherError(f"{name}: {key!r} has the type {kind}, not F32.")
            arrays = {key: file.get_tensor(key) for key in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise TeacherError(f"{name} is not a readable safetensors file: {error}.") from error
    said = described.pop("checksum", None)
    if said is not None and said != checksum(described, arrays):
        raise TeacherError(f"{name} is damaged: its checksum does not hold.")
    try:
        preparation = preparation_of(described)
    except ConfigError as error:
        raise TeacherError(f"{name}, by its metadata: {error}") from error
    try:
        module = _module(described)
    except ConfigError as error:
        verb = "names an" if "graph" not in described else "holds a network that cannot be:"
        raise TeacherError(f"{name} {verb} {error}") from error
    check_variables(name, arrays, module, described["image_size"])
    return described | {"module": module, "preparation": preparation}, arrays


def _module(described: dict[str, Any]) -> nn.Module:
    architecture, graph = described["architecture"], described.get("graph")
    if graph is not None and registry.is_registered(architecture):
        raise ConfigError(f"{architecture!r} is a network of this package, which has no graph.")
    size, channels = described["image_size"], len(described["mean"])
    return registry.restore(architecture, described["classes"], size, channels, graph)


def check_variables(name: str, arrays: dict[str, np.ndarray], module, image_size: int) -> None:
    """Raises TeacherError where arrays are not exactly the variables of a network.

    Args:
      name: whose they are, for the message.
      arrays: by name.
      module: the network.
      image_size: side of its images in pixels.
    """
    expected = registry.variable_shapes(module, image_size)
    for key in sorted(arrays.keys() - expected.keys()):
        raise TeacherError(f"{name} holds an unknown array {key!r}; {nearest(key, expected)}")
    for key, shape in expected.items():
        if key not in arrays:
            raise TeacherError(f"{name} lacks {key!r}; {nearest(key, arrays)}")
        if arrays[key].shape != shape:
            raise TeacherError(
                f"{name}: {key!r} has shape {arrays[key].shape}, but the network needs {shape}."
            )
        if not np.isfinite(arrays[key]).all():
            raise TeacherError(f"{name}: {key!r} holds infinite or not-a-number values.")
        if key.endswith("/var") and (arrays[key] < 0).any():
            raise TeacherError(f"{name}: {key!r} holds negative variances.")


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise TeacherError(f"{str(path)!r} is not a readable safetensors file: {error}.") from error


def _described(name: str, text: str) -> dict[str, Any]:
    """Reads and checks the metadata."""
    try:
        if _depth(text) > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} lists in each other")
        described = json.loads(text)
    except ValueError as error:
        raise TeacherError(f"{name} is damaged: its metadata are not JSON ({error}).") from error
    if not isinstance(described, dict):
        raise TeacherError(f"{name} is damaged: its metadata are not a JSON object.")
    for field in sorted(described.keys() - _FIELDS.keys()):
        raise TeacherError(f"{name} has unknown metadata {field!r}; {nearest(field, _FIELDS)}")
    for field, (holds, right) in _FIELDS.items():
        if field not in described:
            if field in _OPTIONAL:
                continue
            raise TeacherError(f"{name} does not say {field!r} in its metadata.")
        if not holds(described[field]):
            raise TeacherError(
                f"{name}: {field!r} in its metadata must be {right}, not {described[field]!r}."
            )
    if found := fault(described["mean"], described["std"]):
        raise TeacherError(f"{name}, by its metadata: {found}")
    return described


def _depth(text: str) -> int:
    """Returns how many brackets are open at most, since Python fails on a thousand of them."""
    steps = (1 if bracket in "[{" else -1 for bracket in re.findall(r"[\[\]{}]", text))
    return max(itertools.accumulate(steps), default=0)


def _is_size(value: Any) -> bool:
    return _is_count(value) and value <= LARGEST_IMAGE


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**20


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


_FIELDS = {
    "architecture": (lambda value: isinstance(value, str), "a name"),
    "classes": (_is_count, "a positive integer"),
    "image_size": (_is_size, f"a positive integer up to {LARGEST_IMAGE}"),
    "mean": (is_mean, "numbers, one for each channel"),
    "std": (is_std, "positive numbers, one for each channel"),
    "preparation": (lambda value: isinstance(value, dict), "an object"),
    "graph": (lambda value: isinstance(value, list), "a list of nodes"),
    "source": (_is_sha256, "a SHA-256"),
    "keys": (lambda value: isinstance(value, str) and by_code(value) is not None, "a convention"),
    "checksum": (_is_sha256, "a SHA-256"),
}
_OPTIONAL = ("preparation", "graph", "source", "keys", "checksum")
