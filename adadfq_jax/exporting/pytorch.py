"""The format `pytorch`: a state dict by the teacher's own names; `torch.load` reads it safely.

state_dict    quantized weights as floats, biases and BatchNorm as they are: it loads into the
              network that the teacher's checkpoint is for, and computes what the student computes
              once the activations are quantized too
activations   {our name of the activation: {minimum, maximum, bits}}; which module it follows is in
              the name, `stage1_block2/relu1`
weight_bits   {PyTorch's name of the kernel: bits}
checksum      SHA-256 of the rest
about         input space, `input` and `class_names` (`contract.py`), versions, digests of teacher
              and student, the step, the run's result
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.errors import AdaDFQError, ExportError, install_command
from adadfq_jax.exporting.contract import check_input, describe_input, read_names
from adadfq_jax.exporting.description import refuse_newer
from adadfq_jax.exporting.quantized import QuantizedNetwork
from adadfq_jax.models import registry
from adadfq_jax.models.graph import GraphNetwork
from adadfq_jax.models.network import Network, flatten, unflatten
from adadfq_jax.models.preparation import preparation_of
from adadfq_jax.storage.digests import checksum
from adadfq_jax.teachers import naming
from adadfq_jax.teachers.recognition import recognise
from adadfq_jax.teachers.to_flax import fit, to_pytorch

FORMAT = 1
LAYOUT = "NCHW"


def to_bytes(network: QuantizedNetwork, about: dict[str, Any], code: str | None) -> bytes:
    """Returns a file's content.

    Args:
      network: the student.
      about: what else the file should say.
      code: of the convention by which the teacher's file names its variables; without it, the usual
        one of its network is taken.

    Raises:
      ExportError: torch is not installed.
    """
    torch = require()
    convention = (code and naming.by_code(code)) or naming.usual_convention(network.architecture)

    def name(variable: str) -> str:
        return convention.key(variable.partition("/")[2])

    state = {
        name(variable): torch.from_numpy(to_pytorch(array).copy())
        for variable, array in flatten(network.network.variables).items()
        if variable.startswith(("params/", "batch_stats/"))
    }
    saved = {
        "format": FORMAT,
        "state_dict": state,
        "activations": {
            relu: {
                "minimum": activation.minimum,
                "maximum": activation.maximum,
                "bits": activation.bits,
            }
            for relu, activation in network.activations.items()
        },
        "weight_bits": {
            name(f"params/{layer}/kernel"): weights.bits
            for layer, weights in network.weights.items()
        },
        "about": about
        | {
            "architecture": network.architecture,
            "classes": network.classes,
            "image_size": network.image_size,
            "mean": list(network.mean),
            "std": list(network.std),
            **network.preparation.described(),
        }
        | describe_input(network, LAYOUT)
        | ({} if network.graph is None else {"graph": network.graph, "keys": convention.code}),
    }
    content = io.BytesIO()
    torch.save(saved | {"checksum": _checksum(saved)}, content)
    return content.getvalue()


def _checksum(saved: dict[str, Any]) -> str:
    """Covers all that `read` reads; torch itself does not notice a flipped bit."""
    rest = {name: value for name, value in saved.items() if name not in ("state_dict", "checksum")}
    arrays = {name: tensor.numpy() for name, tensor in saved["state_dict"].items()}
    return checksum(rest, arrays)


def read(path: Path) -> Network:
    """Reads a file of `to_bytes` as the network that it describes.

    Raises:
      ExportError: the file is damaged, of another kind, or of a newer format, or torch is missing.
    """
    torch = require()
    name = repr(str(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        newer = content["format"] > FORMAT
    except Exception as error:  # torch raises many kinds for damaged files
        raise ExportError(
            f"{name} is damaged, or not a file of `adadfq export`; a teacher's is for --teacher."
        ) from error
    if newer:
        refuse_newer(name, content["format"], FORMAT)
    try:
        if content["checksum"] != _checksum(content):
            raise ExportError(f"{name} is damaged: its checksum does not hold.")
        about = content["about"]
        state = {key: tensor.numpy() for key, tensor in content["state_dict"].items()}
        architecture, size = about["architecture"], about["image_size"]
        channels = len(about["mean"])
        module = registry.restore(
            architecture, about["classes"], size, channels, about.get("graph")
        )
        if isinstance(module, GraphNetwork):
            convention = naming.by_code(about.get("keys", naming.MODULES.code))
        else:
            convention = recognise({key: array.shape for key, array in state.items()}).convention
        variables = fit(
            name, state, convention, architecture, registry.variable_shapes(module, size)
        )
        activations = {
            f"{collection}/{relu}/{kind}": value
            for relu, activation in content["activations"].items()
            for collection, kind, value in (
                ("bits", "activation", np.int32(activation["bits"])),
                ("ranges", "minimum", np.float32(activation["minimum"])),
                ("ranges", "maximum", np.float32(activation["maximum"])),
            )
        }
        network = Network(
            architecture=architecture,
            module=module,
            variables=variables | unflatten(activations),
            image_size=size,
            mean=tuple(about["mean"]),
            std=tuple(about["std"]),
            class_names=read_names(about),
            preparation=preparation_of(about),
        )
    except ExportError:
        raise
    except (AdaDFQError, AttributeError, KeyError, TypeError) as error:
        raise ExportError(f"{name} does not hold a network that is known: {error}.") from error
    check_input(name, about, describe_input(network, LAYOUT))
    return network


def require() -> Any:
    """Returns the module torch.

    Raises:
      ExportError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ExportError(f"this format needs PyTorch: {install_command('torch')}.") from error
    return torch
