"""PyTorch state dicts onto our variables: every key used exactly once, memory layouts turned."""

from typing import Any

import numpy as np

from adadfq_jax.errors import TeacherError, nearest
from adadfq_jax.models import registry
from adadfq_jax.models.network import unflatten
from adadfq_jax.teachers.naming import Convention
from adadfq_jax.teachers.recognition import Recognised

# Variables have the same shapes at any size.
_ANY_SIZE = 32
_LISTED = 3


def fit_state_dict(
    name: str, state: dict[str, np.ndarray], recognised: Recognised, architecture: str
) -> dict[str, Any]:
    """Turns a state dict into a network's variables.

    Args:
      name: whose state dict it is, for messages.
      state: arrays by PyTorch's names.
      recognised: what `recognise` said of it.
      architecture: the one of `recognised.architectures` that it is.

    Returns:
      The collections `params` and `batch_stats`.

    Raises:
      TeacherError: keys are missing or left over, or a shape does not fit.
    """
    module = registry.build(architecture, recognised.classes)
    shapes = registry.variable_shapes(module, _ANY_SIZE)
    return fit(name, state, recognised.convention, architecture, shapes)


def fit(
    name: str,
    state: dict[str, np.ndarray],
    convention: Convention,
    architecture: str,
    variables: dict[str, tuple[int, ...]],
) -> dict[str, Any]:
    """Turns a state dict into the variables that a network has by these names, of these shapes.

    Args:
      name: whose state dict it is, for messages.
      state: arrays by PyTorch's names.
      convention: how those name our variables.
      architecture: the network's name, for messages.
      variables: of `registry.variable_shapes`.

    Returns:
      The collections `params` and `batch_stats`.

    Raises:
      TeacherError: keys are missing or left over, or a shape does not fit.
    """
    expected = {convention.key(variable.partition("/")[2]): variable for variable in variables}
    _require_same_keys(name, state, expected, architecture)
    arrays = {}
    for key, variable in expected.items():
        arrays[variable] = to_flax(state[key])
        if arrays[variable].shape != variables[variable]:
            raise TeacherError(
                f"{name} looks like {architecture} but does not fit it: {key!r} has shape "
                f"{state[key].shape}, and {_torch_shape(variables[variable])} is needed."
            )
    return unflatten(arrays)


def _require_same_keys(name: str, state, expected, architecture: str) -> None:
    missing = [key for key in expected if key not in state]
    left_over = [key for key in state if key not in expected]
    if not missing and not left_over:
        return
    parts = []
    if missing:
        parts.append(f"{_count(missing)} missing: {_list(missing, left_over)}")
    if left_over:
        parts.append(f"{_count(left_over)} left over: {_list(left_over, missing)}")
    if any(key.endswith((".running_mean", ".running_var")) for key in missing):
        parts.append("data-free quantization needs every BatchNorm's statistics")
    raise TeacherError(f"{name} looks like {architecture} but does not fit it: {'; '.join(parts)}.")


def _count(found: list[str]) -> str:
    return f"{len(found)} {'key is' if len(found) == 1 else 'keys are'}"


def _list(found: list[str], others: list[str]) -> str:
    shown = [
        f"{key!r} ({nearest(key, others).rstrip('.')})" if others else repr(key)
        for key in found[:_LISTED]
    ]
    return ", ".join(shown) + (", ..." if len(found) > _LISTED else "")


def to_flax(array: np.ndarray) -> np.ndarray:
    """Turns PyTorch's (out, in, H, W) and (out, in) into our (H, W, in, out) and (in, out)."""
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array)


def to_pytorch(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_flax`."""
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)
    elif array.ndim == 2:
        array = array.T
    return np.ascontiguousarray(array)


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return outputs, inputs, height, width
    return shape[::-1]
