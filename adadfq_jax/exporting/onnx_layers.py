"""Layers with variables and quantizers in ONNX's exact form, which computes as the student does.

Weights are DequantizeLinear of their codes by output channel; codes of up to 4 bits are UINT4 (from
opset 21), others UINT8. An ONNX zero point must fit its integer type, which ours need not (see
`quantization/codes.py`): where one channel's does not, the layer's zero points are 0 and an offset
by channel is added. An activation is clipped to its range before QuantizeLinear, which saturates to
UINT8 and not to 2^k levels.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from adadfq_jax.exporting.onnx_writer import Writer
from adadfq_jax.exporting.quantized import Weights
from adadfq_jax.models.graph import Node

_MOST_BITS_OF_UINT4 = 4


def pads(padding: tuple[tuple[int, int], tuple[int, int]]) -> list[int]:
    """Returns padding in ONNX's order: top, left, bottom, right."""
    (top, bottom), (left, right) = padding
    return [top, left, bottom, right]


def layer(writer: Writer, node: Node, x: str) -> str:
    """A convolution, with its BatchNorm where that is folded into it; or a dense layer.

    A dense layer is a convolution of the one pixel: of a matrix product of codes, onnxruntime would
    make one that rounds its input to 8 bits.
    """
    name = node.name
    weights, bias = with_norm(writer, name)
    kernel = _dequantize(writer, name, weights, by_output(weights))
    output = name if bias is None else f"{name}/product"
    product = writer.add("Conv", name, [x, kernel], output, **conv_attributes(node))
    return with_bias(writer, name, product, bias)


def conv_attributes(node: Node) -> dict[str, Any]:
    """Returns the attributes of ONNX's Conv for a convolution, or for a dense layer."""
    settings = node.attributes
    if node.op == "dense":
        return {"kernel_shape": [1, 1]}
    return {
        "strides": list(settings["strides"]),
        "pads": pads(settings["padding"]),
        "dilations": list(settings["dilation"]),
        "group": settings["groups"],
        "kernel_shape": list(settings["kernel_size"]),
    }


def with_norm(writer: Writer, name: str) -> tuple[Weights, np.ndarray | None]:
    """Returns (a layer's weights without bias, its bias), with the BatchNorm folded into it."""
    weights = writer.network.weights[name]
    bias = weights.bias
    if name in writer.folded:
        norm = writer.folded[name]
        epsilon = norm.attributes["epsilon"]
        factor, shift = writer.network.norms[norm.name].factor_and_shift(epsilon)
        bias = shift if bias is None else bias * factor + shift
        weights = _times(weights, factor)
    return weights, bias


def by_output(weights: Weights) -> np.ndarray:
    """Returns a layer's codes as ONNX's Conv has kernels, (out, in, height, width)."""
    if weights.codes.ndim == 2:
        return weights.codes.T[:, :, None, None]
    return weights.codes.transpose(3, 2, 0, 1)


def with_bias(writer: Writer, name: str, product: str, bias: np.ndarray | None) -> str:
    """Adds a bias to what a layer makes, as an operation after it."""
    if bias is None:
        return product
    # As the convolution's own, onnxruntime would round it to multiples of the two steps.
    constant = writer.constant(f"{name}/bias", bias.reshape(-1, 1, 1))
    return writer.add("Add", f"{name}/bias", [product, constant], name)


def _dequantize(writer: Writer, name: str, weights: Weights, codes: np.ndarray) -> str:
    """Adds a layer's kernel, given its codes as (out, in, height, width)."""
    if weights.bits is None:
        return writer.constant(f"{name}/kernel", codes * weights.step.reshape(-1, 1, 1, 1))
    small = weights.bits <= _MOST_BITS_OF_UINT4
    writer.has_uint4 |= small
    dtype, largest = (ml_dtypes.uint4, 15) if small else (np.uint8, 255)
    zero_points = -weights.zero_point
    fits = bool(((zero_points >= 0) & (zero_points <= largest)).all())
    stored = zero_points if fits else np.zeros_like(zero_points)
    kernel = writer.add(
        "DequantizeLinear",
        name,
        [
            writer.constant(f"{name}/codes", codes.astype(dtype)),
            writer.constant(f"{name}/step", weights.step),
            writer.constant(f"{name}/zero_point", stored.astype(np.uint8).astype(dtype)),
        ],
        f"{name}/dequantized",
        axis=0,
    )
    if fits:
        return kernel
    offset = (weights.zero_point * weights.step).reshape(-1, 1, 1, 1)
    constant = writer.constant(f"{name}/offset", offset)
    return writer.add("Add", f"{name}/offset", [kernel, constant], f"{name}/kernel")


def norm(writer: Writer, node: Node, x: str) -> str:
    """A BatchNorm, which does nothing where it is folded."""
    if any(folded is node for folded in writer.folded.values()):
        return x
    variables = writer.network.norms[node.name]
    constants = [
        writer.constant(f"{node.name}/{field}", getattr(variables, field))
        for field in ("scale", "bias", "mean", "variance")
    ]
    return writer.add(
        "BatchNormalization",
        node.name,
        [x, *constants],
        node.name,
        epsilon=node.attributes["epsilon"],
    )


def _relu(writer: Writer, node: Node, x: str, output: str) -> str:
    largest = node.attributes["largest"]
    if largest is None or node.name in writer.network.activations:  # whose range clips it
        return writer.add("Relu", node.name, [x], output)
    bounds = [
        writer.constant(f"{node.name}/{end}", np.float32(value))
        for end, value in (("smallest", 0), ("largest", largest))
    ]
    return writer.add("Clip", node.name, [x, *bounds], output)


def _leaky_relu(writer: Writer, node: Node, x: str, output: str) -> str:
    return writer.add("LeakyRelu", node.name, [x], output, alpha=node.attributes["slope"])


def _silu(writer: Writer, node: Node, x: str, output: str) -> str:
    gate = writer.add("Sigmoid", node.name, [x], f"{node.name}/gate")
    return writer.add("Mul", node.name, [x, gate], output)


def _hardswish(writer: Writer, node: Node, x: str, output: str) -> str:
    # The operation of this name needs a newer opset.
    gate = writer.add("HardSigmoid", node.name, [x], f"{node.name}/gate", alpha=1 / 6, beta=0.5)
    return writer.add("Mul", node.name, [x, gate], output)


def _gelu(writer: Writer, node: Node, x: str, output: str) -> str:
    name = node.name

    def times(value: str, factor: float, part: str) -> str:
        constant = writer.constant(f"{name}/{part}/factor", np.float32(factor))
        return writer.add("Mul", f"{name}/{part}", [value, constant], f"{name}/{part}")

    if node.attributes["approximate"]:
        square = writer.add("Mul", f"{name}/square", [x, x], f"{name}/square")
        cube = writer.add("Mul", f"{name}/cube", [square, x], f"{name}/cube")
        small = times(cube, 0.044715, "small")
        inner = writer.add("Add", f"{name}/inner", [x, small], f"{name}/inner")
        scaled = times(inner, math.sqrt(2 / math.pi), "scaled")
        curve = writer.add("Tanh", name, [scaled], f"{name}/curve")
    else:
        curve = writer.add("Erf", name, [times(x, math.sqrt(0.5), "scaled")], f"{name}/curve")
    half = times(x, 0.5, "half")
    gated = writer.add("Mul", f"{name}/gated", [half, curve], f"{name}/gated")
    return writer.add("Add", name, [half, gated], output)


def _hardtanh(writer: Writer, node: Node, x: str, output: str) -> str:
    bounds = [
        writer.constant(f"{node.name}/{end}", np.float32(node.attributes[end]))
        for end in ("min", "max")
    ]
    return writer.add("Clip", node.name, [x, *bounds], output)


_FUNCTIONS = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "silu": _silu,
    "hardswish": _hardswish,
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "quantizer": lambda writer, node, x, output: x,
}


def activation_writers(quantizer: Callable[[Writer, Node, str], str]) -> dict[str, Callable]:
    """Returns, by kind, what writes an activation function and, in a student, its quantizer."""

    def then_quantize(function: Callable[[Writer, Node, str, str], str]):
        def write(writer: Writer, node: Node, x: str) -> str:
            if node.name not in writer.network.activations:  # in full precision
                return function(writer, node, x, node.name)
            return quantizer(writer, node, function(writer, node, x, f"{node.name}/{node.op}"))

        return write

    return {op: then_quantize(function) for op, function in _FUNCTIONS.items()}


def quantize(writer: Writer, node: Node, x: str) -> str:
    """A quantizer that clips in floating point."""
    name = node.name
    step, zero_point, n = writer.network.activations[name].affine()
    lowest, highest = np.float32(zero_point * step), np.float32((n + zero_point) * step)
    if node.op == "relu":
        lowest = max(lowest, np.float32(0))
        highest = min(highest, np.float32(node.attributes["largest"] or np.inf))
    bounds = [
        writer.constant(f"{name}/lowest", lowest),
        writer.constant(f"{name}/highest", max(highest, lowest)),
    ]
    x = writer.add("Clip", f"{name}/range", [x, *bounds], f"{name}/clipped")
    fits = 0 <= -zero_point <= n
    parameters = [
        writer.constant(f"{name}/step", step),
        writer.constant(f"{name}/zero_point", np.uint8(-zero_point if fits else 0)),
    ]
    if fits:
        codes = writer.add("QuantizeLinear", name, [x, *parameters], f"{name}/codes")
        return writer.add("DequantizeLinear", name, [codes, *parameters], name)
    # UINT8 has no place for it; what is quantized instead is the distance from the lowest.
    offset = writer.constant(f"{name}/offset", np.float32(zero_point * step))
    x = writer.add("Sub", name, [x, offset], f"{name}/shifted")
    codes = writer.add("QuantizeLinear", name, [x, *parameters], f"{name}/codes")
    x = writer.add("DequantizeLinear", name, [codes, *parameters], f"{name}/dequantized")
    return writer.add("Add", name, [x, offset], name)


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
