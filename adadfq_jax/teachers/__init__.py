"""Teachers: full-precision classifiers, read from files.

This project's own file is one safetensors file: the variables by name, and under the metadata key
`adadfq` one JSON string with architecture, classes, image size and normalisation.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from adadfq_jax import models
from adadfq_jax.errors import TeacherError, nearest
from adadfq_jax.network import Network, flatten, unflatten
from adadfq_jax.teachers import pytorch

__all__ = ["Teacher", "load_teacher", "save_teacher"]

_METADATA_KEY = "adadfq"
_PYTORCH_SUFFIXES = (".pth", ".pt", ".th")
_SIZE = {"cifar": 32}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Teacher(Network):
    """The frozen full-precision classifier P, with collections `params` and `batch_stats`."""


def load_teacher(
    path: str | Path,
    architecture: str | None = None,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    image_size: int | None = None,
) -> Teacher:
    """Reads a teacher.

    Args:
      path: a PyTorch checkpoint (`.pth`, `.pt`, `.th`; needs torch, and never executes what the
        file contains) or this project's own `.safetensors` file.
      architecture: a name of `models.ARCHITECTURES`; for a PyTorch checkpoint only.
      mean, std: normalisation per channel of pixels in [0, 1]; for a PyTorch checkpoint only.
      image_size: side of the images in pixels; 32 for the CIFAR networks.

    Raises:
      TeacherError: the file is missing, damaged, of another network, or does not say enough.
    """
    path = Path(path)
    if not path.is_file():
        raise TeacherError(f"there is no teacher file {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _load_own(path, architecture, mean, std, image_size)
    if path.suffix not in _PYTORCH_SUFFIXES:
        raise TeacherError(
            f"{str(path)!r} is not a teacher file: expected .safetensors or "
            f"{', '.join(_PYTORCH_SUFFIXES)}."
        )
    if architecture is None:
        raise TeacherError(
            f"{str(path)!r} does not say which network it is: name it with teacher.architecture "
            f"(known: {', '.join(models.ARCHITECTURES)})."
        )
    if not mean or not std:
        raise TeacherError(
            f"{str(path)!r} does not say how its images are normalised: give mean and std, three "
            "numbers each (data.mean and data.std in a configuration)."
        )
    variables, classes = pytorch.read(path, architecture)
    return Teacher(
        architecture=architecture,
        module=models.build(architecture, classes),
        variables=variables,
        image_size=image_size or _SIZE["cifar"],
        mean=tuple(mean),
        std=tuple(std),
    )


def save_teacher(teacher: Network, path: str | Path) -> None:
    """Writes a teacher as this project's own file; the same teacher gives the same bytes."""
    metadata = {
        "architecture": teacher.architecture,
        "classes": teacher.classes,
        "image_size": teacher.image_size,
        "mean": list(teacher.mean),
        "std": list(teacher.std),
    }
    # One key, because safetensors writes several in random order.
    safetensors.numpy.save_file(
        flatten(teacher.variables), path, {_METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    )


def _load_own(path, architecture, mean, std, image_size) -> Teacher:
    try:
        with safetensors.safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise TeacherError(f"{str(path)!r} is not a readable safetensors file: {error}.") from error
    if text is None:
        raise TeacherError(f"{str(path)!r} was not written by this project: no network named in it.")
    described = json.loads(text)
    given = {
        "architecture": architecture,
        "mean": list(mean) or None,
        "std": list(std) or None,
        "image_size": image_size,
    }
    for field, value in given.items():
        if value is not None and value != described[field]:
            raise TeacherError(
                f"{str(path)!r} says {field}={described[field]}, but {value} was asked for."
            )
    module = models.build(described["architecture"], described["classes"])
    check_shapes(path, arrays, module, described["image_size"])
    return Teacher(
        architecture=described["architecture"],
        module=module,
        variables=unflatten(arrays),
        image_size=described["image_size"],
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
    )


def check_shapes(path: Path, arrays: dict[str, np.ndarray], module, image_size: int) -> None:
    """Raises TeacherError where a file's arrays are not exactly those of its network."""
    shapes = models.initial_variables(module, image_size)
    expected = {
        f"{collection}/{name}": leaf.shape
        for collection in ("params", "batch_stats")
        for name, leaf in _flat_shapes(shapes[collection]).items()
    }
    for name in arrays.keys() - expected.keys():
        raise TeacherError(f"{str(path)!r} holds an unknown array {name!r}; {nearest(name, expected)}")
    for name, shape in expected.items():
        if name not in arrays:
            raise TeacherError(f"{str(path)!r} lacks {name!r}; {nearest(name, arrays)}")
        if arrays[name].shape != shape:
            raise TeacherError(
                f"{str(path)!r}: {name!r} has shape {arrays[name].shape}, but the network needs "
                f"{shape}."
            )
        if not np.isfinite(arrays[name]).all():
            raise TeacherError(f"{str(path)!r}: {name!r} holds infinite or not-a-number values.")


def _flat_shapes(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat_shapes(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat
