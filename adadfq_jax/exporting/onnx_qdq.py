"""The format `onnx`: a QDQ graph that onnxruntime and other engines run, by the layers' names.

Weights are DequantizeLinear of their codes by output channel; codes of up to 4 bits are UINT4 (from
opset 21), others UINT8. An ONNX zero point must fit its integer type, which ours need not (see
`quantization/codes.py`): where one channel's does not, the layer's zero points are 0 and an offset
by channel is added. An activation is clipped to its range before QuantizeLinear, which saturates to
UINT8 and not to 2^k levels. Arrays are (N, channels, H, W), as ONNX has them.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from adadfq_jax.errors import ExportError
from adadfq_jax.exporting.description import ONNX_KEY, read_description
from adadfq_jax.exporting.quantized import QuantizedNetwork, Weights
from adadfq_jax.models.graph import INPUT, Node
from adadfq_jax.storage.digests import checksum

FORMAT = 1
OUTPUT = "logits"
_OPSET, _OPSET_UINT4 = 13, 21
_MOST_BITS_OF_UINT4 = 4


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
      A checked model with the input `image` (N, 3, H, W) and the output `logits` (N, classes).
    """
    writer = _Writer(network, fold_norms)
    if raw_pixels:
        writer.normalise()
    for node in network.nodes:
        writer.write(node)
    writer.add("Identity", "output", [writer.values[network.nodes[-1].name]], OUTPUT)
    side = network.image_size
    graph = helper.make_graph(
        writer.operations,
        network.architecture,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 3, side, side])],
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
        "raw_pixels": raw_pixels,
        "about": about,
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


class _Writer:
    """Collects a graph's operations and constants, node by node."""

    def __init__(self, network: QuantizedNetwork, fold_norms: bool):
        self.operations: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values = {INPUT: INPUT}  # by node, the tensor that it makes
        self.has_uint4 = False
        self._network = network
        self._folded = _norms_after_convolutions(network.nodes) if fold_norms else {}

    def add(self, op: str, name: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.operations.append(
            helper.make_node(op, inputs, [output], name=f"{name}/{op}", **attributes)
        )
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def normalise(self) -> None:
        """Puts the normalisation of pixels before everything else."""
        mean, std = (
            np.array(value, np.float32).reshape(1, 3, 1, 1) * np.float32(255)
            for value in (self._network.mean, self._network.std)
        )
        centred = self.add("Sub", INPUT, [INPUT, self.constant(f"{INPUT}/mean", mean)], "centred")
        divisor = self.constant(f"{INPUT}/std", std)
        self.values[INPUT] = self.add("Div", INPUT, [centred, divisor], "normalised")

    def write(self, node: Node) -> None:
        """Appends a node of the network."""
        inputs = [self.values[name] for name in node.inputs]
        self.values[node.name] = getattr(self, f"_{node.op}")(node, inputs)

    def _conv(self, node: Node, inputs: list[str]) -> str:
        name, settings = node.name, node.attributes
        weights = self._network.weights[name]
        bias = weights.bias
        if name in self._folded:
            norm = self._folded[name]
            factor, shift = self._network.norms[norm.name].affine(norm.attributes["epsilon"])
            bias = shift if bias is None else bias * factor + shift
            weights = _times(weights, factor)
        kernel = self._dequantize(name, weights, weights.codes.transpose(3, 2, 0, 1))
        product = self.add(
            "Conv",
            name,
            [inputs[0], kernel],
            name if bias is None else f"{name}/product",
            strides=[settings["strides"]] * 2,
            pads=[settings["padding"]] * 4,
            group=settings["groups"],
            kernel_shape=list(weights.codes.shape[:2]),
        )
        if bias is None:
            return product
        # As the convolution's own, onnxruntime would round it to multiples of the two steps.
        constant = self.constant(f"{name}/bias", bias.reshape(-1, 1, 1))
        return self.add("Add", f"{name}/bias", [product, constant], name)

    def _dense(self, node: Node, inputs: list[str]) -> str:
        # A convolution of the one pixel: of a matrix product of codes, onnxruntime would make one
        # that rounds its input to 8 bits.
        name = node.name
        weights = self._network.weights[name]
        codes = weights.codes.T[:, :, None, None]
        kernel = self._dequantize(name, weights, codes)
        product = self.add("Conv", name, [inputs[0], kernel], f"{name}/product")
        flat = self.add("Flatten", name, [product], f"{name}/flat")
        return self.add("Add", name, [flat, self.constant(f"{name}/bias", weights.bias)], name)

    def _dequantize(self, name: str, weights: Weights, codes: np.ndarray) -> str:
        """Adds a layer's kernel, given its codes as (out, in, height, width)."""
        if weights.bits is None:
            return self.constant(f"{name}/kernel", codes * weights.step.reshape(-1, 1, 1, 1))
        small = weights.bits <= _MOST_BITS_OF_UINT4
        self.has_uint4 |= small
        dtype, largest = (ml_dtypes.uint4, 15) if small else (np.uint8, 255)
        zero_points = -weights.zero_point
        fits = bool(((zero_points >= 0) & (zero_points <= largest)).all())
        stored = zero_points if fits else np.zeros_like(zero_points)
        kernel = self.add(
            "DequantizeLinear",
            name,
            [
                self.constant(f"{name}/codes", codes.astype(dtype)),
                self.constant(f"{name}/step", weights.step),
                self.constant(f"{name}/zero_point", stored.astype(np.uint8).astype(dtype)),
            ],
            f"{name}/dequantized",
            axis=0,
        )
        if fits:
            return kernel
        offset = (weights.zero_point * weights.step).reshape(-1, 1, 1, 1)
        return self.add(
            "Add",
            f"{name}/offset",
            [kernel, self.constant(f"{name}/offset", offset)],
            f"{name}/kernel",
        )

    def _norm(self, node: Node, inputs: list[str]) -> str:
        if any(norm is node for norm in self._folded.values()):
            return inputs[0]
        norm = self._network.norms[node.name]
        variables = [
            self.constant(f"{node.name}/{field}", getattr(norm, field))
            for field in ("scale", "bias", "mean", "variance")
        ]
        return self.add(
            "BatchNormalization",
            node.name,
            [*inputs, *variables],
            node.name,
            epsilon=node.attributes["epsilon"],
        )

    def _relu(self, node: Node, inputs: list[str]) -> str:
        name, largest = node.name, node.attributes["largest"]
        if name not in self._network.activations:  # in full precision
            x = self.add("Relu", name, inputs, name if largest is None else f"{name}/relu")
            if largest is None:
                return x
            bound = self.constant(f"{name}/largest", np.float32(largest))
            return self.add("Min", name, [x, bound], name)
        activation = self._network.activations[name]
        step, zero_point, n = activation.affine()
        lowest = np.float32(max(zero_point * step, 0))
        highest = np.float32((n + zero_point) * step)
        if largest is not None:
            highest = min(highest, np.float32(largest))
        x = self.add("Relu", name, inputs, f"{name}/relu")
        bounds = [
            self.constant(f"{name}/lowest", lowest),
            self.constant(f"{name}/highest", max(highest, lowest)),
        ]
        x = self.add("Clip", name, [x, *bounds], f"{name}/clipped")
        offset = None
        if zero_point != 0:
            # UINT8 has no place for it; what is quantized instead is the distance from the lowest.
            offset = self.constant(f"{name}/offset", np.float32(zero_point * step))
            x = self.add("Sub", name, [x, offset], f"{name}/shifted")
        parameters = [
            self.constant(f"{name}/step", step),
            self.constant(f"{name}/zero_point", np.uint8(0)),
        ]
        codes = self.add("QuantizeLinear", name, [x, *parameters], f"{name}/codes")
        if offset is None:
            return self.add("DequantizeLinear", name, [codes, *parameters], name)
        x = self.add("DequantizeLinear", name, [codes, *parameters], f"{name}/dequantized")
        return self.add("Add", name, [x, offset], name)

    def _add(self, node: Node, inputs: list[str]) -> str:
        return self.add("Add", node.name, [inputs[0], inputs[-1]], node.name)

    def _subsample(self, node: Node, inputs: list[str]) -> str:
        name, strides = node.name, node.attributes["strides"]
        constants = [
            self.constant(f"{name}/{part}", np.array(value, np.int64))
            for part, value in (
                ("starts", [0, 0]),
                ("ends", [np.iinfo(np.int64).max] * 2),
                ("axes", [2, 3]),
                ("steps", [strides] * 2),
            )
        ]
        return self.add("Slice", name, [*inputs, *constants], name)

    def _pad_channels(self, node: Node, inputs: list[str]) -> str:
        before, after = node.attributes["before"], node.attributes["after"]
        pads = np.array([0, before, 0, 0, 0, after, 0, 0], np.int64)
        return self.add(
            "Pad", node.name, [*inputs, self.constant(f"{node.name}/pads", pads)], node.name
        )

    def _max_pool(self, node: Node, inputs: list[str]) -> str:
        settings = node.attributes
        return self.add(
            "MaxPool",
            node.name,
            inputs,
            node.name,
            kernel_shape=[settings["window"]] * 2,
            strides=[settings["strides"]] * 2,
            pads=[settings["padding"]] * 4,
        )

    def _average_pool(self, node: Node, inputs: list[str]) -> str:
        window = [node.attributes["window"]] * 2
        return self.add(
            "AveragePool", node.name, inputs, node.name, kernel_shape=window, strides=window
        )

    def _mean(self, node: Node, inputs: list[str]) -> str:
        return self.add("GlobalAveragePool", node.name, inputs, node.name)

    def _reshape(self, node: Node, inputs: list[str]) -> str:
        if len(node.attributes["shape"]) > 1:  # (1, 1, channels): the average has kept its axes
            return inputs[0]
        return self.add("Flatten", node.name, inputs, node.name)


def _norms_after_convolutions(nodes: list[Node]) -> dict[str, Node]:
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


def _times(weights: Weights, factor: np.ndarray) -> Weights:
    """Returns weights times a factor by output channel, which stay codes of as many bits."""
    if weights.bits is None:
        return dataclasses.replace(weights, step=weights.step * factor, bias=None)
    n = np.float32(2**weights.bits - 1)
    negative, zero = factor < 0, factor == 0
    # -(c + z) = (n - c) + (-n - z)
    codes = np.where(negative, n - weights.codes, weights.codes)
    zero_point = np.where(negative, -n - weights.zero_point, weights.zero_point)
    return Weights(
        codes=np.where(zero, 0, codes).astype(np.uint8),
        step=np.where(zero, 1, weights.step * np.abs(factor)).astype(np.float32),
        zero_point=np.where(zero, 0, zero_point).astype(np.float32),
        bits=weights.bits,
        bias=None,
    )
