"""A network that is given as its PyTorch module: read through `torch.export`, PyTorch's exporter.

Its layers keep the names of their modules, so that a student goes back by the user's own keys.
"""

import contextlib
import copy
import dataclasses
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.errors import ConfigError, TeacherError, install_command
from adadfq_jax.models import registry
from adadfq_jax.models.graph import (
    INPUT,
    GraphNetwork,
    Node,
    checked_network,
    is_network_name,
    to_json,
)
from adadfq_jax.models.layers import COLOURS
from adadfq_jax.models.network import Teacher
from adadfq_jax.models.preparation import USUAL
from adadfq_jax.teachers import naming, state_dicts, to_flax
from adadfq_jax.teachers.aten import READERS
from adadfq_jax.teachers.program import GraphReader, place_in, simplify
from adadfq_jax.teachers.stated import Stated

_BATCH = 2  # of the program; 1 could not be told from other sizes


def read_module(module: Any, stated: Stated, name: str | None = None) -> Teacher:
    """Reads a network from its PyTorch module; whether it is the same is for others to prove.

    Args:
      module: as `from_torch` takes it.
      stated: its image size, mean and std.
      name: what the network is called; by default, its class.

    Raises:
      TeacherError: PyTorch is missing, or the module is no network that can be read; says why.
      ConfigError: the name is one of this package's networks.
    """
    torch = _torch()
    label = name or type(module).__name__
    if not is_network_name(label) or registry.is_registered(label):
        raise ConfigError(
            f"{label!r} cannot be the network's name, or is one of this package: give another name."
        )
    image_size = stated.image_size
    if not stated.mean or not stated.std or not image_size:
        raise TeacherError(f"{label} does not say its images: give image_size, mean and std.")
    if any(part.training for part in module.modules()):
        raise TeacherError(f"{label} is in training mode: call its eval() first.")
    _require_values(torch, module, label)
    channels = _input_channels(torch, module)
    stated = stated.of_channels(label, channels)
    program = _export(torch, module, label, (_BATCH, channels, image_size, image_size))
    nodes, classes = _nodes(module, label, program)
    network = _checked(label, nodes, classes, image_size, channels)
    variables = _variables(label, program, network, image_size)
    return Teacher(
        architecture=label,
        module=network,
        variables=variables,
        image_size=image_size,
        mean=stated.mean,
        std=stated.std,
        preparation=USUAL.changed(**stated.preparation),
        convention=f"the module {type(module).__name__}, by torch.export of PyTorch "
        f"{torch.__version__}",
        keys=naming.MODULES.code,
    )


def plain_module(module: Any) -> Any:
    """Returns the network itself of a module that `torch.compile` made of it.

    Raises:
      TeacherError: it is no PyTorch module.
    """
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, _torch().nn.Module):
        shown = repr(module) if isinstance(module, str) else f"a {type(module).__name__}"
        raise TeacherError(f"from_torch takes a torch.nn.Module, not {shown:.60}.")
    return module


def _require_values(torch: Any, module: Any, label: str) -> None:
    """Raises TeacherError where a module is not Python code with weights that have values."""
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise TeacherError(
            f"{label} is compiled by TorchScript: give the module that it was made from."
        )
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise TeacherError(f"{label}: {key!r} has no shape yet: call it on images first.")
        if tensor.is_meta:
            raise TeacherError(
                f"{label}: {key!r} is on the device 'meta' and holds no values: load weights first."
            )


def load_weights(
    module: Any, label: str, path: Path, entry: str | None = None, prefix: str | None = None
) -> None:
    """Puts the weights of a file into a PyTorch module, without executing anything in the file.

    What a module holds besides floating-point numbers stays as its code makes it.

    Args:
      module: the `torch.nn.Module`.
      label: what it is called in messages.
      path: a checkpoint, as `load_teacher` takes it.
      entry, prefix: as there; by default, the prefix is what stands before the module's names.

    Raises:
      TeacherError: the file cannot be read, or is of another network.
    """
    torch = _torch()
    held = module.state_dict()
    wanted = {key: tuple(value.shape) for key, value in held.items() if value.is_floating_point()}
    arrays = state_dicts.read_weights(path, label, wanted, held.keys() - wanted, entry, prefix)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    module.load_state_dict(tensors, strict=False)


def with_proof(teacher: Teacher, difference: float) -> Teacher:
    """Returns a teacher that says how far its logits are from its module's.

    Args:
      teacher: the teacher.
      difference: the largest one, as a share of the largest logit.
    """
    said = f"{teacher.convention}; its logits differ by at most {difference:.1e} of the largest"
    return dataclasses.replace(teacher, convention=said)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise TeacherError(f"from_torch needs PyTorch: {install_command('torch')}.") from error
    return torch


def in_float64(module: Any, images: np.ndarray) -> np.ndarray:
    """Returns a module's logits in float64.

    Args:
      module: the PyTorch module; it stays as it is.
      images: (B, H, W, channels), normalised.
    """
    return _logits(copy.deepcopy(module).cpu().double(), images.astype(np.float64))


def in_float32(module: Any, images: np.ndarray) -> np.ndarray:
    """As `in_float64`, in float32."""
    return _logits(copy.deepcopy(module).cpu().float(), images.astype(np.float32))


def _logits(module: Any, images: np.ndarray) -> np.ndarray:
    torch = _torch()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    (logits,) = torch.utils._pytree.tree_leaves(made)  # which may lie in a list or a dictionary
    return logits.numpy()


def why_unsteady(module: Any, images: np.ndarray) -> str:
    """Says what else than its images a module's logits depend on; nothing where it is not seen.

    Args:
      module: the PyTorch module; it stays as it is.
      images: (B, H, W, 3), normalised.
    """
    module, images = copy.deepcopy(module).cpu().double(), images.astype(np.float64)
    logits = _logits(module, images)
    if not np.array_equal(logits, _logits(module, images)):
        return ": called again on the same images, the module gives others"
    if not np.allclose(logits[:1], _logits(module, images[:1])):
        return ": the module's logits of an image depend on the other images that are given with it"
    return ""


def _input_channels(torch: Any, module: Any) -> int:
    convolutions = (part for part in module.modules() if isinstance(part, torch.nn.Conv2d))
    first = next(convolutions, None)
    return COLOURS if first is None else first.in_channels


def _export(torch: Any, module: Any, label: str, shape: tuple[int, ...]) -> Any:
    """Returns the program of a module."""
    module = copy.deepcopy(module).cpu().float()
    images = torch.zeros(shape)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(images)
    except Exception as error:  # the user's code fails in its own way
        raise TeacherError(
            f"{label} cannot take images {shape[1:]}: {_first_line(error)}."
        ) from error
    try:
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            # So that what a module does under no_grad is no part of the program by itself.
            with torch.no_grad():
                return torch.export.export(module, (images,))
    except Exception as error:  # torch.export has many kinds
        where, said = place_in(str(error)), _first_line(error)
        depends = re.search("data-dependent|could not guard|control flow", str(error), re.I)
        why = ", which takes no control flow that depends on values" if depends else ""
        raise TeacherError(
            f"{label} cannot be read by torch.export{why}{where}: {said}."
        ) from error


@contextlib.contextmanager
def _quiet():
    """Keeps PyTorch's exporter from printing its own account of a failure."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(before)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().split("\n")
    return " ".join(lines[0].split()).rstrip(".")[:200] or type(error).__name__


def _nodes(module: Any, label: str, program: Any) -> tuple[tuple[Node, ...], int]:
    """Returns (the nodes, the number of classes)."""
    signature = program.graph_signature
    parameters = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    reader = GraphReader(label, READERS, parameters)
    reader.require_plain(program.graph.nodes)
    _require_batch_norm(module, label, program)
    numbers = _numbers(program, parameters)
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in signature.user_inputs:
            reader.values[node] = INPUT
        elif node.op == "placeholder" and node.name in numbers:
            reader.values[node] = numbers[node.name]
        elif node.op == "call_function":
            reader.read(node)
    (outputs,) = program.graph.output_node().args
    if len(outputs) != 1 or not hasattr(outputs[0], "meta") or outputs[0].meta["val"].ndim != 2:
        raise TeacherError(
            f"{label} returns no logits (B, classes) alone: give a module that does."
        )
    return simplify(reader.nodes, reader.values[outputs[0]]), outputs[0].meta["val"].shape[1]


def _numbers(program: Any, parameters: dict[str, str]) -> dict[str, float]:
    """Returns the tensors of one number that a program holds, by their placeholders."""
    held = {**program.state_dict, **program.constants}
    keys = parameters | dict(program.graph_signature.inputs_to_lifted_tensor_constants)
    found = {name: held[key] for name, key in keys.items() if key in held}
    return {
        name: float(tensor.detach())
        for name, tensor in found.items()
        if tensor.numel() == 1 and tensor.ndim == 0 and tensor.is_floating_point()
    }


def _require_batch_norm(module: Any, label: str, program: Any) -> None:
    """Raises TeacherError where a program has no BatchNorm, and says what became of it."""
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    if any("batch_norm" in target for target in called):
        return
    others = {"layer_norm": "LayerNorm", "group_norm": "GroupNorm", "instance_norm": "InstanceNorm"}
    found = [name for part, name in others.items() if any(part in target for target in called)]
    folded = [
        name
        for name, part in module.named_modules()
        if type(part).__name__ == "Identity" and re.search(r"bn|norm", name.rpartition(".")[2])
    ]
    if found:
        reason = f"it normalises by {' and '.join(found)}, which keeps no statistics"
    elif folded:
        reason = (
            f"its BatchNorms, such as {folded[0]!r}, are folded into the convolutions before them, "
            "and their statistics are gone: give the network as it was before"
        )
    else:
        reason = "it normalises nothing, or its BatchNorms are folded into its convolutions"
    raise TeacherError(
        f"{label} is a network without BatchNorm, whose statistics are all that data-free "
        f"quantization knows about the images: {reason}."
    )


def _checked(
    label: str, nodes: tuple[Node, ...], classes: int, image_size: int, channels: int
) -> GraphNetwork:
    try:
        return checked_network(to_json(nodes), classes, image_size, channels)
    except ConfigError as error:
        raise TeacherError(f"{label} cannot be read: {error}") from error


def _variables(label: str, program: Any, network: GraphNetwork, image_size: int) -> dict[str, Any]:
    """Returns the collections `params` and `batch_stats` from a program's tensors."""
    shapes = registry.variable_shapes(network, image_size)
    wanted = {naming.MODULES.key(variable.partition("/")[2]) for variable in shapes}
    state = {
        key: value.detach().cpu().float().numpy()
        for key, value in program.state_dict.items()
        if key in wanted
    }
    _require_finite(label, state)
    return to_flax.fit(label, state, naming.MODULES, label, shapes)


def _require_finite(label: str, state: dict[str, np.ndarray]) -> None:
    for key, value in state.items():
        if not np.isfinite(value).all():
            raise TeacherError(f"{label}: {key!r} holds infinite or not-a-number values.")
        if key.endswith(".running_var") and (value < 0).any():
            raise TeacherError(f"{label}: {key!r} holds negative variances.")
