"""The format `integers`: one safetensors file of bit-packed codes and the numbers beside them.

Tensors, by the layers' names (`stage1_block1/conv1`):

  LAYER/codes       uint8: the kernel's codes in C order of (height, width, in, out) or (in, out),
                    k bits each without gaps: code i takes the bits i k … i k + k - 1 of the stream,
                    least significant first, where bit j is bit j mod 8 of byte j div 8
  LAYER/step        float32 (out,): units per code
  LAYER/zero_point  float32 (out,), integer-valued: kernel = (codes + zero_point) step
  LAYER/bias        float32 (out,), where there is one
  NORM/scale, bias, mean, variance   float32 (channels,)
  ACTIVATION/range  float32 (2,): minimum and maximum of the activation

Under the metadata key `adadfq_integers` stands one JSON string: format (a number that grows with
the layout; of 1, another graph of the same networks is read too), architecture, classes,
image_size, mean, std, input and class_names (`contract.py`), bits (of layers and activations),
shapes (of kernels), graph ([op, name, inputs, attributes] in order of computation), about (whoever
made it: versions, the digests of teacher and student, the step, the run's result) and checksum, the
SHA-256 of all the rest.
`numpy_reader.py` is a whole program that runs such a file.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from adadfq_jax.errors import AdaDFQError, ExportError
from adadfq_jax.exporting.contract import check_input, describe_input, read_names
from adadfq_jax.exporting.description import INTEGERS_KEY, read_description
from adadfq_jax.exporting.quantized import Activation, Norm, QuantizedNetwork, Weights
from adadfq_jax.models import registry
from adadfq_jax.models.graph import to_json
from adadfq_jax.models.operations import OPERATIONS
from adadfq_jax.models.preparation import preparation_of
from adadfq_jax.models.tracing import trace
from adadfq_jax.storage.digests import checksum

FORMAT = 2
LAYOUT = "NHWC"  # of the images that the graph takes
_NORM = ("scale", "bias", "mean", "variance")


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes of k bits without gaps; see the layout above.

    Args:
      codes: uint8 of any shape, each below 2^bits.
      bits: bit-width k.

    Returns:
      uint8, (ceil(size k / 8),).
    """
    each = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(each, bitorder="little")


def unpack(packed: np.ndarray, bits: int, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `pack`."""
    each = np.unpackbits(packed, count=math.prod(shape) * bits, bitorder="little")
    return np.packbits(each.reshape(-1, bits), axis=1, bitorder="little").reshape(shape)


def to_bytes(network: QuantizedNetwork, about: dict[str, Any]) -> bytes:
    """Returns a file's content; the same network gives the same bytes.

    Args:
      network: the student.
      about: what else the metadata should say.
    """
    arrays: dict[str, np.ndarray] = {}
    for name, weights in network.weights.items():
        arrays[f"{name}/codes"] = pack(weights.codes, weights.bits)
        arrays[f"{name}/step"] = weights.step
        arrays[f"{name}/zero_point"] = weights.zero_point
        if weights.bias is not None:
            arrays[f"{name}/bias"] = weights.bias
    for name, norm in network.norms.items():
        for field in _NORM:
            arrays[f"{name}/{field}"] = getattr(norm, field)
    for name, activation in network.activations.items():
        arrays[f"{name}/range"] = np.array([activation.minimum, activation.maximum], np.float32)
    described = {
        "format": FORMAT,
        "architecture": network.architecture,
        "classes": network.classes,
        "image_size": network.image_size,
        "mean": list(network.mean),
        "std": list(network.std),
        **network.preparation.described(),
        "bits": {
            name: part.bits
            for name, part in [*network.weights.items(), *network.activations.items()]
        },
        "shapes": {name: list(part.codes.shape) for name, part in network.weights.items()},
        "graph": to_json(network.nodes),
        "about": about,
        **describe_input(network, LAYOUT),
    }
    described["checksum"] = checksum(described, arrays)
    return safetensors.numpy.save(arrays, {INTEGERS_KEY: json.dumps(described, sort_keys=True)})


def read(path: Path) -> QuantizedNetwork:
    """Reads a file of `to_bytes`.

    Raises:
      ExportError: the file is damaged, of another kind, or of a newer format.
    """
    name = repr(str(path))
    try:
        with safetensors.safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(INTEGERS_KEY)
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ExportError(f"{name} is not a readable safetensors file: {error}.") from error
    described = read_description(name, text, FORMAT, lambda rest: checksum(rest, arrays))
    try:
        network = _network(described, arrays)
    except (AdaDFQError, KeyError, ValueError, TypeError) as error:
        raise ExportError(f"{name} does not hold a network that is known: {error}.") from error
    check_input(name, described, describe_input(network, LAYOUT))
    return network


def _network(described: dict[str, Any], arrays: dict[str, np.ndarray]) -> QuantizedNetwork:
    size = described["image_size"]
    module = registry.restore(
        described["architecture"],
        described["classes"],
        size,
        len(described["mean"]),
        described["graph"],
    )
    nodes = trace(module, size)
    bits, shapes = described["bits"], described["shapes"]
    return QuantizedNetwork(
        architecture=described["architecture"],
        classes=described["classes"],
        image_size=described["image_size"],
        mean=tuple(described["mean"]),
        std=tuple(described["std"]),
        preparation=preparation_of(described),
        module=module,
        nodes=nodes,
        weights={
            name: Weights(
                codes=unpack(arrays[f"{name}/codes"], bits[name], tuple(shape)),
                step=arrays[f"{name}/step"],
                zero_point=arrays[f"{name}/zero_point"],
                bits=bits[name],
                bias=arrays.get(f"{name}/bias"),
            )
            for name, shape in shapes.items()
        },
        norms={
            node.name: Norm(
                *(arrays[f"{node.name}/{field}"] for field in _NORM), node.attributes["affine"]
            )
            for node in nodes
            if node.op == "norm"
        },
        activations={
            node.name: Activation(*map(float, arrays[f"{node.name}/range"]), bits[node.name])
            for node in nodes
            if OPERATIONS[node.op].activation
        },
        class_names=read_names(described),
    )
