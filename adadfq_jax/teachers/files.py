"""Checkpoint files to named arrays, without ever executing what a file holds."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from adadfq_jax.errors import TeacherError, nearest
from adadfq_jax.teachers.pickles import WAY_OUT, read_torch

# Where programs put the weights among other things. First those of a moving average (EMA): it is
# what their authors evaluate.
_ENTRIES = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
)
_PREFIXES = ("module.", "model.", "net.", "_orig_mod.")
_SAFETENSORS_TYPES = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}


@dataclasses.dataclass(frozen=True)
class State:
    """A state dict.

    Attributes:
      arrays: float32 arrays in PyTorch's layout, by name without prefixes such as `module.`.
      entry: where in the file they were: `state_dict`, or empty for a bare state dict.
    """

    arrays: dict[str, np.ndarray]
    entry: str


def read_state(path: Path, entry: str | None = None) -> State:
    """Reads a state dict from a PyTorch checkpoint or a safetensors file.

    Args:
      path: the file; `.safetensors` files are read as such, any other with torch and
        `weights_only=True`.
      entry: which of the file's entries holds the weights; by default, the first known one, and
        the moving average where there is one.

    Raises:
      TeacherError: torch is missing, or the file is damaged, unsafe, or holds something else.
    """
    name = repr(str(path))
    if path.suffix == ".safetensors":
        if entry is not None:
            raise TeacherError(f"{name} is a safetensors file and has no entry {entry!r}.")
        tensors, entry = _read_safetensors(path), ""
    else:
        tensors, entry = _unwrap(read_torch(path), name, entry)
        tensors = {key: _to_numpy(name, key, value) for key, value in tensors.items()}
    arrays = {
        key: array for key, array in tensors.items() if not key.endswith("num_batches_tracked")
    }
    if not arrays:
        raise TeacherError(f"{name} holds no weights: its state dict is empty.")
    return State(_without_prefixes(_to_float32(name, arrays)), entry)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except (safetensors.SafetensorError, OSError) as error:
        raise TeacherError(f"{str(path)!r} is not a readable safetensors file: {error}.") from error
    arrays = {}
    for key, tensor in tensors:
        kind = _SAFETENSORS_TYPES.get(tensor["dtype"])
        if kind is None and not key.endswith("num_batches_tracked"):
            raise TeacherError(_not_floating(repr(str(path)), key, tensor["dtype"]))
        arrays[key] = np.frombuffer(tensor["data"], kind or np.uint8)
        if kind is not None:
            arrays[key] = arrays[key].reshape(tensor["shape"])
    return arrays


def _unwrap(loaded: Any, name: str, entry: str | None) -> tuple[Mapping[str, Any], str]:
    """Finds the state dict in what a file held."""
    if not isinstance(loaded, Mapping):
        raise TeacherError(f"{name} holds no state dict but a {type(loaded).__name__}; {WAY_OUT}.")
    if entry is not None and not isinstance(loaded.get(entry), Mapping):
        others = [str(key) for key, value in loaded.items() if isinstance(value, Mapping)]
        raise TeacherError(f"{name} has no state dict under {entry!r}; {nearest(entry, others)}")
    trail = []
    if entry is not None:
        trail.append(entry)
        loaded = loaded[entry]
    while found := next((key for key in _ENTRIES if _holds_tensors(loaded.get(key))), None):
        trail.append(found)
        loaded = loaded[found]
    if not _holds_tensors(loaded):
        inside = f" under {'.'.join(trail)!r}" if trail else ""
        some = ", ".join(sorted(map(str, loaded))[:5]) or "nothing"
        raise TeacherError(
            f"{name} holds no state dict{inside}: no mapping of names to tensors, but {some}."
        )
    return loaded, ".".join(trail)


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    """Whether a value is a state dict, or has one in a known entry, a few levels down at most."""
    if not isinstance(value, Mapping):
        return False
    return any(hasattr(item, "numpy") for item in value.values()) or (
        depth > 0 and any(_holds_tensors(value.get(key), depth - 1) for key in _ENTRIES)
    )


def _to_numpy(name: str, key: Any, tensor: Any) -> np.ndarray:
    import torch

    if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
        raise TeacherError(
            f"{name}: the entry {key!r} of its state dict is no tensor but a "
            f"{type(tensor).__name__}."
        )
    if (
        tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.device.type != "cpu"
        or not _is_dense(tensor)
    ):
        raise TeacherError(f"{name}: {key!r} is not a plain dense tensor.")
    if key.endswith("num_batches_tracked"):
        return np.zeros(())
    if key == "n_averaged":  # the counter of torch.optim.swa_utils.AveragedModel
        return np.zeros((), np.float32)
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise TeacherError(_not_floating(name, key, str(tensor.dtype).removeprefix("torch.")))
    return tensor.detach().to(torch.float32).numpy()


def _is_dense(tensor: Any) -> bool:
    """Whether a tensor has each number of its memory once, in any order of dimensions.

    Weights have. A damaged stride is the commonest damage that torch's older format lets through.
    """
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _not_floating(name: str, key: str, kind: str) -> str:
    return (
        f"{name}: {key!r} has the type {kind}; weights must be floating-point numbers of 16, 32 or "
        "64 bits."
    )


def _to_float32(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    converted = {}
    for key, array in arrays.items():
        with np.errstate(over="ignore"):  # too large a number becomes infinite, which is refused
            converted[key] = array.astype(np.float32)
        if not np.isfinite(converted[key]).all():
            raise TeacherError(f"{name}: {key!r} holds infinite or not-a-number values.")
        if key.endswith("running_var") and (converted[key] < 0).any():
            raise TeacherError(f"{name}: {key!r} holds negative variances.")
    return converted


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {key: array for key, array in arrays.items() if key != "n_averaged"}
    while True:
        prefix = next((p for p in _PREFIXES if all(key.startswith(p) for key in arrays)), None)
        if prefix is None:
            return arrays
        arrays = {key.removeprefix(prefix): array for key, array in arrays.items()}
