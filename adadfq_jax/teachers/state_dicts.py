"""Checkpoint files to named arrays, without ever executing what a file holds."""

import dataclasses
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from adadfq_jax.errors import TeacherError, nearest
from adadfq_jax.teachers import kinds, parts
from adadfq_jax.teachers.inert import Skipped
from adadfq_jax.teachers.pickles import WAY_OUT, Loaded, read_torch

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
_OFFERED = 3
_OF_AN_EXPORT = {"activations", "weight_bits", "checksum"}  # of `exporting/pytorch.py`
# In the names that PyTorch's own quantization writes.
_PACKED = re.compile(r"(?:^|\.)(?:_packed_params|scale$|zero_point$)|_packed")
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
      arrays: float32 arrays in PyTorch's layout, by the network's own names, without what stands
        before all of them in the file.
      entry: where in the file they were: `state_dict`, or empty for a bare state dict.
      prefix: what stands before the names in the file, such as `module.`.
      head: the file's name of the classifier, where the network's convention has another.
      left_over: the file's other keys, which are not read.
      skipped: names of the classes of objects in the file that were neither read nor executed.
      others: the entries of other state dicts in the file, which may be the network's too.
    """

    arrays: dict[str, np.ndarray]
    entry: str
    prefix: str = ""
    head: str = ""
    left_over: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def read_state(path: Path, entry: str | None = None, prefix: str | None = None) -> State:
    """Reads a state dict from a PyTorch checkpoint or a safetensors file.

    Args:
      path: the file, of which its first bytes say what reads it.
      entry: which of the file's entries holds the weights, `model` or, in another, `model.module`;
        by default, the first known one, and the moving average where there is one.
      prefix: what stands before the network's keys; by default, what stands before its blocks'.

    Raises:
      TeacherError: torch is missing, or the file is damaged, unsafe, or holds something else.
    """
    name = repr(str(path))
    held = _read_tensors(path, entry)
    tensors = held.tensors
    shapes = {key: tuple(value.shape) for key, value in tensors.items() if _is_array(value)}
    try:
        part = parts.find_network(shapes, prefix)
    except TeacherError as error:
        raise TeacherError(f"{name} {error}") from error
    if not part.names:
        raise TeacherError(f"{name} holds no weights: its state dict is empty.")
    arrays = {own: _to_numpy(name, key, tensors[key]) for own, key in part.names.items()}
    left_over = (*part.left_over, *(key for key in tensors if key not in shapes))
    return State(
        _to_float32(name, arrays),
        held.entry,
        part.prefix,
        part.head,
        left_over,
        held.skipped,
        held.others,
    )


def read_weights(
    path: Path,
    label: str,
    wanted: Mapping[str, tuple[int, ...]],
    others: Collection[str] = (),
    entry: str | None = None,
    prefix: str | None = None,
) -> dict[str, np.ndarray]:
    """Reads the weights of a network whose names and shapes are known.

    Args:
      path, entry: as `read_state` takes them.
      label: what the network is called in messages.
      wanted: the shape of each tensor to be read, by name.
      others: names of the network's other tensors, which are not read.
      prefix: what stands before these names in the file; by default, what stands before all.

    Returns:
      Float32 arrays by the network's names.

    Raises:
      TeacherError: as `read_state`; or the weights are another network's.
    """
    name = repr(str(path))
    tensors = {
        key: value for key, value in _read_tensors(path, entry).tensors.items() if _is_array(value)
    }
    before = _prefix(wanted, tensors) if prefix is None else prefix and prefix.rstrip(".") + "."
    found = {key.removeprefix(before): key for key in tensors if key.startswith(before)}
    for key, shape in wanted.items():
        if key not in found:
            raise TeacherError(
                f"{name} is of another network than {label}: it lacks {before + key!r}; "
                f"{nearest(before + key, tensors)}"
            )
        if (given := tuple(tensors[found[key]].shape)) != shape:
            raise TeacherError(
                f"{name} is of another network than {label}: {found[key]!r} has shape {given}, "
                f"not {shape}."
            )
    if left_over := sorted(found.keys() - wanted.keys() - set(others)):
        more = f" and {len(left_over) - 1} more" if len(left_over) > 1 else ""
        raise TeacherError(
            f"{name} is of another network than {label}, which has no {left_over[0]!r}{more}."
        )
    arrays = {key: _to_numpy(name, found[key], tensors[found[key]]) for key in wanted}
    return _to_float32(name, arrays)


def _prefix(wanted: Iterable[str], found: Iterable[str]) -> str:
    """Returns what stands before most of a network's names in a file."""
    counts = Counter(
        key.removesuffix(own)
        for own in wanted
        for key in found
        if key == own or key.endswith(f".{own}")
    )
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")


@dataclasses.dataclass(frozen=True)
class _Held:
    """What a file holds: the tensors of one entry, and what else `State` says of it."""

    tensors: dict[str, Any]
    entry: str
    skipped: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


def _read_tensors(path: Path, entry: str | None) -> _Held:
    """Reads an entry of a file, without what BatchNorms count."""
    name = repr(str(path))
    skipped = others = ()
    if kinds.kind_of(path) == kinds.SAFETENSORS:
        if entry is not None:
            raise TeacherError(f"{name} is a safetensors file and has no entry {entry!r}.")
        tensors, entry = _read_safetensors(path), ""
    else:
        loaded = read_torch(path)
        if isinstance(loaded.content, Mapping) and set(loaded.content) >= _OF_AN_EXPORT:
            raise TeacherError(
                f"{name} is an exported student, and no teacher: its activations are quantized as "
                "well; `adadfq evaluate --model=FILE` measures it."
            )
        skipped = loaded.skipped
        asked = entry is not None
        tensors, entry = _unwrap(loaded, name, entry)
        others = () if asked else _others(loaded.content, entry, len(tensors))
    tensors = {key: value for key, value in tensors.items() if not _is_a_counter(key)}
    for key in tensors:
        _require_name(name, key)
    return _Held(tensors, entry, skipped, others)


def _is_a_counter(key: Any) -> bool:
    # Of BatchNorm, and of torch.optim.swa_utils.AveragedModel.
    return isinstance(key, str) and (key.endswith("num_batches_tracked") or key == "n_averaged")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and not isinstance(value, Skipped)


def _require_name(name: str, key: Any) -> None:
    """Raises TeacherError for a key that no state dict of a network in floating point has."""
    if not isinstance(key, str):
        raise TeacherError(
            f"{name}: the names in a state dict are texts such as 'conv1.weight', and not {key!r}; "
            f"{WAY_OUT}."
        )
    if _PACKED.search(key):
        raise TeacherError(_torch_quantized(name, key))


def _torch_quantized(name: str, key: str) -> str:
    return (
        f"{name} is quantized by PyTorch already ({key!r}): give the floating-point network that "
        "it was made of."
    )


@dataclasses.dataclass(frozen=True)
class _OtherType:
    """A tensor of a safetensors file that is not read, since it has no floating-point numbers."""

    kind: str
    shape: tuple[int, ...]


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = safetensors.deserialize(path.read_bytes())
    except (safetensors.SafetensorError, OSError) as error:
        raise TeacherError(f"{str(path)!r} is not a readable safetensors file: {error}.") from error
    arrays = {}
    for key, tensor in tensors:
        kind = _SAFETENSORS_TYPES.get(tensor["dtype"])
        if kind is None:  # an error only where the network needs it
            arrays[key] = _OtherType(tensor["dtype"], tuple(tensor["shape"]))
        else:
            arrays[key] = np.frombuffer(tensor["data"], kind).reshape(tensor["shape"])
    return arrays


def _unwrap(loaded: Loaded, name: str, entry: str | None) -> tuple[Mapping[Any, Any], str]:
    """Finds the state dict in what a file held."""
    content = loaded.content
    if not isinstance(content, Mapping):
        raise TeacherError(f"{name} holds {_in_words(content)} and no state dict; {WAY_OUT}.")
    trail = []
    if entry is not None:
        content = _entry(content, entry, name)
        trail.append(entry)
    while found := next((key for key in _ENTRIES if _holds_tensors(content.get(key))), None):
        trail.append(found)
        content = content[found]
    if not _holds_tensors(content):
        inside = f" under {'.'.join(trail)!r}" if trail else ""
        raise TeacherError(f"{name} holds no state dict{inside}: {_offer(content, trail)}.")
    return content, ".".join(trail)


def _others(content: Mapping[Any, Any], entry: str, size: int) -> tuple[str, ...]:
    """Returns the entries of other state dicts of about the size of the one that was taken.

    Known entries are not among them: which goes before which is documented.
    """
    return tuple(
        name
        for name, value in _state_dicts(content)
        if entry
        and not set(name.split(".")) <= {*_ENTRIES, *entry.split(".")}
        and not name.startswith(f"{entry}.")
        and 2 * _count_tensors(value) > size
    )


def _in_words(content: Any) -> str:
    if isinstance(content, Skipped):
        return f"a whole {content.name}, which is a program's object,"
    if hasattr(content, "numpy"):
        return "one tensor"
    return f"a {type(content).__name__}"


def _entry(content: Mapping[Any, Any], entry: str, name: str) -> Mapping[Any, Any]:
    """Returns the state dict under an entry, whose name may have dots of its own."""
    found = dict(_state_dicts(content))
    if entry not in found:
        raise TeacherError(f"{name} has no state dict under {entry!r}; {nearest(entry, found)}")
    return found[entry]


def _state_dicts(
    content: Mapping[Any, Any], trail: str = "", depth: int = 3
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yields all mappings in a file that may be given as its entry, by their names."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield f"{trail}{key}", value
            if depth:
                yield from _state_dicts(value, f"{trail}{key}.", depth - 1)


def _offer(content: Mapping[Any, Any], trail: list[str]) -> str:
    """Says what a file holds where a state dict was looked for."""
    before = "".join(f"{part}." for part in trail)
    held = [key for key, value in _state_dicts(content, before) if _has_tensors(value)]
    if "param_groups" in content and not held:
        return "it holds the state of an optimizer; give the file that holds the network's"
    if held:
        said = " or ".join(f"--entry={key}" for key in held[:_OFFERED])
        return f"where it has tensors, give {said} to convert or evaluate"
    inside = (value for value in content.values() if isinstance(value, Mapping))
    values = (*content.values(), *(value for mapping in inside for value in mapping.values()))
    objects = [value.name for value in values if isinstance(value, Skipped)]
    if any(name.startswith("numpy") for name in objects):
        return (
            "it holds NumPy arrays, which only a program can read from it: there, write "
            "torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, FILE)"
        )
    if objects:
        return (
            f"it holds a whole {objects[0]}, which is a program's object and no state dict; "
            f"{WAY_OUT}"
        )
    some = ", ".join(sorted(map(str, content))[:5]) or "nothing"
    return f"no mapping of names to tensors, but {some}"


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds tensors itself, and not only a number or two beside a state dict."""
    count = _count_tensors(value)
    inside = (_count_tensors(below) for below in value.values() if isinstance(below, Mapping))
    return count > max(inside, default=0)


def _count_tensors(value: Mapping[Any, Any]) -> int:
    return sum(hasattr(item, "numpy") for item in value.values())


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    """Whether a value is a state dict, or has one in a known entry, a few levels down at most."""
    if not isinstance(value, Mapping):
        return False
    return _has_tensors(value) or (
        depth > 0 and any(_holds_tensors(value.get(key), depth - 1) for key in _ENTRIES)
    )


def _to_numpy(name: str, key: str, tensor: Any) -> np.ndarray:
    if isinstance(tensor, np.ndarray):  # of a safetensors file
        return tensor
    if isinstance(tensor, _OtherType):
        raise TeacherError(_not_floating(name, key, tensor.kind))
    import torch

    if tensor.is_quantized:
        raise TeacherError(_torch_quantized(name, key))
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or not _is_dense(tensor):
        raise TeacherError(f"{name}: {key!r} is not a plain dense tensor.")
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
