"""The format `onnx`: a QDQ graph that onnxruntime and other engines run, by the layers' names.

What each kind of node becomes stands in `onnx_operations.py` and `onnx_layers.py`. Arrays are
(N, channels, H, W), as ONNX has them; features without pixels are (N, channels, 1, 1) until the
logits.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from adadfq_jax.errors import ExportError
from adadfq_jax.exporting.contract import describe_input
from adadfq_jax.exporting.description import ONNX_KEY, read_description
from adadfq_jax.exporting.onnx_operations import WRITERS
from adadfq_jax.exporting.onnx_writer import Writer
from adadfq_jax.exporting.quantized import QuantizedNetwork
from adadfq_jax.models.graph import INPUT, Node
from adadfq_jax.storage.digests import checksum

FORMAT = 1
OUTPUT = "logits"
LAYOUT = "NCHW"
_OPSET, _OPSET_UINT4 = 13, 21


def build(
    network: QuantizedNetwork,
    about: dict[str, Any],
    *,
    fold_norms: bool = False,
    raw_pixels: bool = False,
) -> onnx.ModelProto:
    """Writes a student as an ONNX model.

    Args:
      network: the student.
      about: what the metadata should say besides the input space.
      fold_norms: whether BatchNorms are folded into the convolutions before them.
      raw_pixels: whether the model takes float pixels in [0, 255] and normalises them itself, or
        normalised images.

    Returns:
      A checked model with the input `image` (N, channels, H, W) and the output `logits`
      (N, classes).
    """
    writer = Writer(network, _norms_after_convolutions(network.nodes) if fold_norms else {})
    if raw_pixels:
        writer.normalise()
    for node in network.nodes:
        inputs = [writer.values[name] for name in node.inputs]
        writer.values[node.name] = WRITERS[node.op](writer, node, *inputs)
    writer.add("Flatten", "output", [writer.values[network.nodes[-1].name]], OUTPUT)
    side, channels = network.image_size, len(network.mean)
    graph = helper.make_graph(
        writer.operations,
        network.architecture,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", channels, side, side])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", network.classes])],
        writer.constants,
    )
    opset = _OPSET_UINT4 if writer.has_uint4 else _OPSET
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(
        graph,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        producer_name="adadfq_jax",
    )
    described = {
        "format": FORMAT,
        "architecture": network.architecture,
        "classes": network.classes,
        "image_size": network.image_size,
        "mean": list(network.mean),
        "std": list(network.std),
        **network.preparation.described(),
        "raw_pixels": raw_pixels,
        "about": about,
        **describe_input(network, LAYOUT, raw_pixels),
    }
    described["checksum"] = _checksum(described, model)
    helper.set_model_props(model, {ONNX_KEY: json.dumps(described, sort_keys=True)})
    onnx.checker.check_model(model, full_check=True)
    return model


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Reads and checks a model of `build`.

    Returns:
      (what its metadata say, the model's bytes).

    Raises:
      ExportError: the file is damaged, of another kind, or of a newer format.
    """
    name = repr(str(path))
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own errors have no common public base
        raise ExportError(f"{name} is not a readable ONNX model.") from error
    text = {entry.key: entry.value for entry in model.metadata_props}.get(ONNX_KEY)
    described = read_description(name, text, FORMAT, lambda rest: _checksum(rest, model))
    return described, content


def _checksum(described: dict[str, Any], model: onnx.ModelProto) -> str:
    return checksum(described, model.graph.SerializeToString(deterministic=True))


def _norms_after_convolutions(nodes: Sequence[Node]) -> dict[str, Node]:
    """Returns, by convolution, the BatchNorm that alone reads it."""
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    return {
        node.name: readers[node.name][0]
        for node in nodes
        if node.op == "conv" and [reader.op for reader in readers.get(node.name, [])] == ["norm"]
    }
