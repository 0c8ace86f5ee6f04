"""PyTorch checkpoints: their key names and memory layouts, mapped onto our variables."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax import models
from adadfq_jax.errors import TeacherError, nearest
from adadfq_jax.network import unflatten

_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def read(path: Path, architecture: str) -> tuple[dict[str, Any], int]:
    """Reads a checkpoint of a known architecture.

    Args:
      path: a file written by `torch.save`; read with `weights_only=True`, so that nothing in it
        is ever executed.
      architecture: one of `models.ARCHITECTURES`.

    Returns:
      (variables, classes): collections `params` and `batch_stats`, and the number of classes.

    Raises:
      TeacherError: torch is missing, the file is damaged or unsafe, or its keys do not fit.
    """
    state_dict = _unwrap(_load(path), path)
    if "linear.weight" not in state_dict:
        raise TeacherError(
            f"{str(path)!r} has no key 'linear.weight'; {nearest('linear.weight', state_dict)}"
        )
    classes = len(state_dict["linear.weight"])
    shapes = models.initial_variables(models.build(architecture, classes), 32)
    arrays = {}
    unused = dict(state_dict)
    for collection in ("params", "batch_stats"):
        for name, shape in _leaves(shapes[collection]):
            key = original_key(name)
            if key not in unused:
                raise TeacherError(
                    f"{str(path)!r} does not fit {architecture}: no key {key!r}; "
                    f"{nearest(key, unused)}"
                )
            array = _layout(unused.pop(key))
            if array.shape != shape:
                raise TeacherError(
                    f"{str(path)!r} does not fit {architecture}: {key!r} gives shape "
                    f"{array.shape}, but the network needs {shape}."
                )
            if not np.isfinite(array).all():
                raise TeacherError(f"{str(path)!r}: {key!r} holds infinite or NaN values.")
            arrays[f"{collection}/{name}"] = array
    leftover = [key for key in unused if not key.endswith("num_batches_tracked")]
    if leftover:
        raise TeacherError(
            f"{str(path)!r} does not fit {architecture}: {len(leftover)} keys are left over, "
            f"among them {', '.join(sorted(leftover)[:3])}."
        )
    return unflatten(arrays), classes


def original_key(name: str) -> str:
    """Returns the original CIFAR ResNet's key for one of our variable names.

    Args:
      name: such as `stage1_block1/conv1/kernel`.

    Returns:
      Such as `layer1.0.conv1.weight`.
    """
    *layers, leaf = name.split("/")
    layer = layers[-1]
    prefix = ""
    if len(layers) == 2:
        stage, block = re.fullmatch(r"stage(\d+)_block(\d+)", layers[0]).groups()
        prefix = f"layer{stage}.{int(block) - 1}."
    layer = {"stem_conv": "conv1", "stem_norm": "norm1", "classifier": "linear"}.get(layer, layer)
    if layer.startswith("norm"):
        return f"{prefix}bn{layer.removeprefix('norm')}.{_NORM[leaf]}"
    return f"{prefix}{layer}.{'bias' if leaf == 'bias' else 'weight'}"


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise TeacherError(
            f"reading {str(path)!r} needs torch: pip install 'adadfq_jax[torch]'."
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TeacherError(
            f"{str(path)!r} holds more than weights, and executing what it holds is not safe; "
            "save its state_dict() and give that."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise TeacherError(f"{str(path)!r} is not a readable PyTorch file: {error}.") from error


def _unwrap(loaded: Any, path: Path) -> dict[str, np.ndarray]:
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(hasattr(v, "numpy") for v in loaded.values()):
        raise TeacherError(f"{str(path)!r} holds no state_dict: no mapping of names to tensors.")
    return {key.removeprefix("module."): value.numpy() for key, value in loaded.items()}


def _layout(array: np.ndarray) -> np.ndarray:
    """Turns PyTorch's (out, in, H, W) and (out, in) into our (H, W, in, out) and (in, out)."""
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array)


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value.shape
