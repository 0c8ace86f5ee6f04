"""The format `onnx`: a QDQ graph that onnxruntime and other engines run, by the layers' names.

What each kind of node becomes stands in `onnx_operations.py`: layers and quantizers in the integer
form, `onnx_integer_layers.py`, or in the exact one, `onnx_layers.py`. Arrays are
(N, channels, H, W), as ONNX has them; features without pixels are (N, channels, 1, 1) until the
logits.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from adadfq_jax.errors import ConfigError, ExportError
from adadfq_jax.exporting.contract import describe_input
from adadfq_jax.exporting.description import ONNX_KEY, read_description
from adadfq_jax.exporting.onnx_integer_layers import pools_before_quantizers
from adadfq_jax.exporting.onnx_operations import FORMS
from adadfq_jax.exporting.onnx_options import DEFAULTS, OPSET, OPSET_OF_UINT4, SUMS, OnnxOptions
from adadfq_jax.exporting.onnx_writer import Writer
from adadfq_jax.exporting.quantized import QuantizedNetwork
from adadfq_jax.models.graph import INPUT, Node
from adadfq_jax.storage.digests import checksum

FORMAT = 1
OUTPUT = "logits"
LAYOUT = "NCHW"


def build(
    network: QuantizedNetwork, about: dict[str, Any], options: OnnxOptions = DEFAULTS
) -> onnx.ModelProto:
    """Writes a student as an ONNX model.

    Args:
      network: the student; or a teacher, in the exact form only.
      about: what the metadata should say besides the input space.
      options: how.

    Returns:
      A checked model with the input `image` (N, channels, H, W) and the output `logits`
      (N, classes).

    Raises:
      ConfigError: the network cannot be written so.
    """
    form = options.form or ("integer" if network.activations else "exact")
    if form == "integer":
        if not network.activations:
            raise ConfigError("a teacher in full precision has no integers: form must be exact.")
        network = pools_before_quantizers(network)
    fold = options.fold_norms or form == "integer"
    writer = Writer(network, _norms_after_convolutions(network) if fold else {}, options.storage)
    if options.raw_pixels:
        writer.normalise()
    for node in network.nodes:
        inputs = [writer.values[name] for name in node.inputs]
        writer.values[node.name] = FORMS[form][node.op](writer, node, *inputs)
    writer.add("Flatten", "output", [writer.values[network.nodes[-1].name]], OUTPUT)
    side, channels = network.image_size, len(network.mean)
    graph = helper.make_graph(
        writer.operations,
        network.architecture,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", channels, side, side])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", network.classes])],
        writer.constants,
    )
    least = OPSET_OF_UINT4 if writer.has_uint4 else OPSET
    if options.opset is not None and options.opset < least:
        raise ConfigError(f"codes of 4 bits need opset {least} or newer, not {options.opset}.")
    imports = [helper.make_opsetid("", options.opset or least)]
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
        "raw_pixels": options.raw_pixels,
        "form": form,
        "not_integer": writer.notes,
        "rounded": writer.rounded,
        "saturating": writer.saturating,
        "about": about,
        **describe_input(network, LAYOUT, options.raw_pixels),
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


def rounding(network: QuantizedNetwork, content: bytes) -> dict[str, np.ndarray]:
    """Returns by how much at most a file has biases rounded, by the variables of its student."""
    model = onnx.load_model_from_string(content)
    (described,) = (json.loads(entry.value) for entry in model.metadata_props)
    constants = {entry.name: entry for entry in model.graph.initializer}
    folded = _norms_after_convolutions(network)
    return {
        f"{folded[layer].name if layer in folded else layer}/bias": (
            numpy_helper.to_array(constants[f"{layer}/bias/step"]) / 2
        )
        for layer in described["rounded"]
    }


def layers(content: bytes) -> list[str]:
    """Returns the names of a model's convolutions and dense layers, in order of computation."""
    return [
        node.output[0].removesuffix("/product")
        for node in onnx.load_model_from_string(content).graph.node
        if node.op_type == "Conv" and not node.output[0].endswith(SUMS)
    ]


def _checksum(described: dict[str, Any], model: onnx.ModelProto) -> str:
    return checksum(described, model.graph.SerializeToString(deterministic=True))


def _norms_after_convolutions(network: QuantizedNetwork) -> dict[str, Node]:
    """Returns, by convolution, the BatchNorm that alone reads it."""
    found = {}
    for node in network.nodes:
        readers = network.readers.get(node.name, [])
        if node.op == "conv" and [reader.op for reader in readers] == ["norm"]:
            found[node.name] = readers[0]
    return found
