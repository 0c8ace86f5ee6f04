"""Layers with variables and quantizers in ONNX's integer form, of which engines make integers.

A layer's weights are INT8 codes with an ONNX zero point of 0 for every channel, as integer kernels
demand: codes + zero_point in the words of `quantization/codes.py`. A BatchNorm is folded into its
convolution. An activation is quantized to UINT8 directly after its function, clipped to its 2^k
levels as integers, and dequantized (the QCDQ form of Brevitas, Pappalardo et al.).

onnxruntime computes a layer in integers whose input is dequantized and whose output is quantized.
Such a layer has its bias as INT32, in units of both steps. Its codes are multiplied by what INT8
still has room for, and its step divided by as much, which changes nothing but the unit of the
bias: at 3 bits it becomes 18 times as fine. Every other layer has its weights as a product of codes
and step that engines compute once, when they load the file; onnxruntime would dequantize them
again for every image. From the product, OpenVINO makes an integer layer all the same.
"""

import dataclasses

import ml_dtypes
import numpy as np
from onnx import TensorProto

from adadfq_jax.exporting import onnx_layers
from adadfq_jax.exporting.onnx_layers import by_output, conv_attributes, with_norm
from adadfq_jax.exporting.onnx_options import SUMS
from adadfq_jax.exporting.onnx_writer import Writer
from adadfq_jax.exporting.quantized import Activation, QuantizedNetwork, Weights
from adadfq_jax.models.graph import INPUT, Node
from adadfq_jax.models.sums import QUANTIZER

_MOST_BITS_OF_UINT4 = 4
_LEAST, _MOST = -128, 127  # of INT8
# Processors without VNNI add up two products of UINT8 and INT8 in 16 bits.
_MOST_OF_TWO_PRODUCTS = 2**15 - 1
# The rounding of a bias to INT32, at most, in steps of the activation that follows.
_MOST_ROUNDING = 0.05
# The bias of a channel without weights.
_UNITS_OF_BIAS = 2**20
# Where levels are finer, most limits cannot be kept in place, and a code more or less is little.
_UNITS_TRIED, _MOST_LEVELS = 65, 2**6 - 1
_MOST_MOVED = 0.001  # of all limits


@dataclasses.dataclass(frozen=True, eq=False)
class _Kernel:
    """A kernel as ((codes + shift) factor + offset) step, of which all but the last two is INT8.

    Attributes:
      codes: uint8, (out, in, height, width).
      shift, factor, offset: integers, (out,).
      step: float32, (out,).
    """

    codes: np.ndarray
    shift: np.ndarray
    factor: np.ndarray
    offset: np.ndarray
    step: np.ndarray

    def int8(self) -> np.ndarray:
        """Returns the INT8 codes."""
        shift, factor = (part.reshape(-1, 1, 1, 1) for part in (self.shift, self.factor))
        return ((self.codes + shift) * factor).astype(np.int8)

    @property
    def reach(self) -> int:
        """The largest size of an INT8 code."""
        return int(np.abs(self.int8().astype(int)).max())


def layer(writer: Writer, node: Node, x: str) -> str:
    """A convolution or dense layer, with its BatchNorm where that is folded into it."""
    name, attributes = node.name, conv_attributes(node)
    weights, bias = with_norm(writer, name)
    source, following = _source(writer, node), _activation_after(writer, node)
    step, largest = (np.float32(1), 1) if source is None else _step_and_largest(source)
    kernel = _kernel(weights, largest, None if bias is None else bias / step)
    if source is None:
        writer.notes[name] = "its input is not quantized"
        if following is not None and node.inputs != (INPUT,):
            # It may come from codes through a padding, which onnxruntime sees through.
            writer.float_before.add(following.name)
        inputs = [x, _float_kernel(writer, name, kernel), *_constant_bias(writer, name, bias)]
        return writer.add("Conv", name, inputs, name, **attributes)
    if kernel.reach * largest * 2 > _MOST_OF_TWO_PRODUCTS:
        writer.saturating.append(name)
    if kernel.offset.any():
        writer.notes[name] = "its codes do not fit INT8, so that an offset is added"
        return _layer_with_offset(writer, node, x, kernel, bias)
    if following is None:
        writer.notes[name] = "its output is not quantized"
    else:
        constants = _integer_constants(writer, name, kernel, bias, step, following)
        if constants:
            return writer.add("Conv", name, [x, *constants], name, **attributes)
        writer.notes[name] = "its bias as INT32 would change codes"
        writer.float_before.add(following.name)
    codes = _codes(writer, name, kernel)
    inputs = [x, _scaled(writer, name, codes, kernel.step), *_constant_bias(writer, name, bias)]
    return writer.add("Conv", name, inputs, name, **attributes)


def _integer_constants(
    writer: Writer,
    name: str,
    kernel: _Kernel,
    bias: np.ndarray | None,
    step: np.float32,
    following: Node,
) -> list[str]:
    """Adds weights and bias of a layer between two quantizers; none where that changes codes.

    Args:
      step: of the layer's input.
      following: the activation that its output becomes.
    """
    activation = writer.network.activations[following.name]
    following_step, zero_point, levels = activation.affine()
    if following.op != QUANTIZER and (following.op != "relu" or zero_point != 0):
        return []  # the saturation of integers is a ReLU or nothing
    unit = step * kernel.step
    if bias is None:
        return [_dequantized(writer, name, _codes(writer, name, kernel), kernel.step)]
    if (unit / 2 > _MOST_ROUNDING * following_step).any() or (
        np.abs(bias / unit) >= np.iinfo(np.int32).max
    ).any():
        return []
    whole = np.rint(bias / unit).astype(np.int32)
    if levels <= _MOST_LEVELS:
        limits = (np.arange(levels) + 0.5 + zero_point) * float(following_step)
        whole, unit, moved = _whole_bias(bias, unit, kernel.factor, limits)
        if moved > _MOST_MOVED:
            return []
    else:
        writer.rounded.append(name)
    bias_codes = writer.constant(f"{name}/bias_codes", whole)
    return [
        _dequantized(writer, name, _codes(writer, name, kernel), unit / step),
        _dequantized(writer, f"{name}/bias", bias_codes, unit),
    ]


def _layer_with_offset(
    writer: Writer, node: Node, x: str, kernel: _Kernel, bias: np.ndarray | None
) -> str:
    """Adds a layer of INT8 codes and, to it, the offset of each channel times the sum of inputs."""
    name, attributes = node.name, conv_attributes(node)
    kernel_of_codes = _scaled(writer, name, _codes(writer, name, kernel), kernel.step)
    inputs = [x, kernel_of_codes, *_constant_bias(writer, name, bias)]
    product = writer.add("Conv", name, inputs, f"{name}/product", **attributes)
    # All channels of one group see the same inputs.
    outputs = 1 if attributes.get("group", 1) == 1 else len(kernel.codes)
    ones = writer.constant(f"{name}/ones", np.ones((outputs, *kernel.codes.shape[1:]), np.int8))
    ones = _scaled(writer, f"{name}{SUMS}", ones, np.ones(outputs, np.float32))
    sums = writer.add("Conv", f"{name}{SUMS}", [x, ones], f"{name}{SUMS}", **attributes)
    offset = writer.constant(f"{name}/offset", _by_channel(kernel.offset * kernel.step)[:, 0])
    sums = writer.add("Mul", f"{name}/offset", [sums, offset], f"{name}/restored")
    return writer.add("Add", f"{name}/offset", [product, sums], name)


def quantize(writer: Writer, node: Node, x: str) -> str:
    """A quantizer that clips codes, which its UINT8 has to have a place for."""
    name, activation = node.name, writer.network.activations[node.name]
    if not _fits_uint8(activation):
        writer.notes[name] = "its zero point does not fit UINT8, so that it has the exact form"
        return onnx_layers.quantize(writer, node, x)
    step, zero_point, n = activation.affine()
    largest = n
    if node.op == "relu" and node.attributes["largest"]:
        largest = min(n, int(np.rint(np.float32(node.attributes["largest"]) / step - zero_point)))
    parameters = [
        writer.constant(f"{name}/step", step),
        writer.constant(f"{name}/zero_point", np.uint8(-zero_point)),
    ]
    if name in writer.float_before:
        # Where onnxruntime sees nothing or a ReLU between a float layer and a quantizer, it rounds
        # the layer's weights once more, to one range for all channels.
        highest = writer.constant(f"{name}/highest", np.float32(largest + zero_point) * step)
        x = writer.add("Min", f"{name}/levels", [x, highest], f"{name}/clipped")
    codes = writer.add("QuantizeLinear", name, [x, *parameters], f"{name}/saturated")
    if name not in writer.float_before and largest < np.iinfo(np.uint8).max:
        bounds = [
            writer.constant(f"{name}/smallest", np.uint8(0)),
            writer.constant(f"{name}/largest", np.uint8(largest)),
        ]
        codes = writer.add("Clip", f"{name}/levels", [codes, *bounds], f"{name}/codes")
    return writer.add("DequantizeLinear", name, [codes, *parameters], name)


def pools_before_quantizers(network: QuantizedNetwork) -> QuantizedNetwork:
    """Moves max-pools to before the quantized ReLU that they alone read, of a float convolution.

    Both orders give the same, because a ReLU and its quantizer are monotone; but onnxruntime has no
    fast max-pool of what was quantized.
    """
    nodes, instead = list(network.nodes), {}
    for index, pool in enumerate(nodes):
        relu = network.by_name.get(pool.inputs[0])
        if pool.op != "max_pool" or relu is None or relu.op != "relu":
            continue
        layer_before = network.by_name.get(relu.inputs[0])
        if layer_before is not None and layer_before.op == "norm":
            layer_before = network.by_name.get(layer_before.inputs[0])
        if layer_before is None or layer_before.op != "conv":
            continue
        if network.quantized_source(layer_before) is not None:
            continue  # it becomes one integer operation with the quantizer
        if len(network.readers[relu.name]) == 1 and pool.name in network.readers:
            nodes[nodes.index(relu)] = dataclasses.replace(pool, inputs=relu.inputs)
            nodes[index] = dataclasses.replace(relu, inputs=(pool.name,))
            instead[pool.name] = relu.name
    moved = set(instead.values())
    nodes = [
        node
        if node.name in moved
        else dataclasses.replace(
            node, inputs=tuple(instead.get(name, name) for name in node.inputs)
        )
        for node in nodes
    ]
    return dataclasses.replace(network, nodes=tuple(nodes))


def _source(writer: Writer, node: Node) -> Activation | None:
    """Returns the activation whose codes a layer reads, if it reads codes."""
    name = writer.network.quantized_source(node)
    activation = None if name is None else writer.network.activations[name]
    return activation if activation is not None and _fits_uint8(activation) else None


def _activation_after(writer: Writer, node: Node) -> Node | None:
    """Returns the activation function that alone reads a layer's output, if one does."""
    name = writer.folded[node.name].name if node.name in writer.folded else node.name
    readers = writer.network.readers.get(name, [])
    return (
        readers[0] if len(readers) == 1 and readers[0].name in writer.network.activations else None
    )


def _fits_uint8(activation: Activation) -> bool:
    return 0 <= -activation.affine()[1] <= np.iinfo(np.uint8).max


def _step_and_largest(activation: Activation) -> tuple[np.float32, int]:
    step, _, largest = activation.affine()
    return step, largest


def _whole_bias(
    bias: np.ndarray, unit: np.ndarray, factor: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """Finds a bias in whole units, and units, with which every sum gets the code that it should.

    The sums of a channel are whole numbers, times `factor` units. So each limit between two codes
    of the activation lies between two sums, and as long as bias and unit leave it there, their
    rounding changes no code. Biases next to the rounded one and slightly other units are tried, and
    those taken that leave most limits in place, and these farthest from the sums around them.

    Args:
      bias, unit, factor: by channel.
      limits: values between two neighbouring codes of the activation that follows, (levels,).

    Returns:
      (bias in units, INT32; unit; by channel both; share of all limits that are not in place).
    """
    first_above = np.ceil((limits - bias[:, None]) / (unit * factor)[:, None])
    # A change of the unit moves the farthest limit by up to half the distance of two sums.
    reach = unit * factor / (2 * np.abs(limits).max())
    whole, best = np.zeros(len(bias), np.int32), np.full(len(bias), -np.inf)
    units = unit.copy()
    for change in np.linspace(-1, 1, _UNITS_TRIED):
        other = (unit * (1 + change * reach)).astype(np.float32)
        for step_aside in (-1, 0, 1):
            rounded = np.rint(bias / other) + step_aside
            places = (limits / other[:, None] - rounded[:, None]) / factor[:, None]
            margins = np.minimum(first_above - places, places - (first_above - 1))
            score = margins.min(1) - (margins <= 0).sum(1)
            better = score > best
            best[better], units[better] = score[better], other[better]
            whole[better] = rounded[better]
    # Of a channel with n limits out of place, the score lies between -n and -n - 1 or beyond.
    return whole, units, float(np.maximum(-np.ceil(best), 0).sum() / (len(bias) * len(limits)))


def _kernel(weights: Weights, largest: int, bias: np.ndarray | None) -> _Kernel:
    """Finds the INT8 codes of a kernel.

    Args:
      weights: the layer's.
      largest: the largest code of its input.
      bias: in units of its input's step; only its size matters.
    """
    codes = by_output(weights)
    shift, step = weights.zero_point.astype(np.int64), weights.step
    low, high = (end((1, 2, 3)).astype(np.int64) + shift for end in (codes.min, codes.max))
    room = max(1, min(_MOST, _MOST_OF_TWO_PRODUCTS // (2 * largest)))
    # A channel of one value can have any step, so that the value's code fits. Of the value 0, it is
    # one of which the bias is a multiple.
    constant = low == high
    single = np.sign(low) * room
    zero_step = np.ones_like(step) if bias is None else np.abs(bias) / _UNITS_OF_BIAS
    zero_step = np.where(zero_step > 0, zero_step, 1)
    value_step = np.where(low == 0, zero_step, np.abs(low) * step.astype(np.float64) / room)
    codes = np.where(constant.reshape(-1, 1, 1, 1), 0, codes)
    shift = np.where(constant, single, shift)
    step = np.where(constant, value_step, step)
    low, high = np.where(constant, single, low), np.where(constant, single, high)

    fits = (low >= _LEAST) & (high <= _MOST)
    offset = np.where(fits, 0, low - _LEAST)
    most = np.maximum(np.maximum(-low, high), 1)
    factor = np.where(fits, np.maximum(room // most, 1), 1)
    return _Kernel(
        codes=codes.astype(np.uint8),
        shift=shift - offset,
        factor=factor,
        offset=offset,
        step=(step / factor).astype(np.float32),
    )


def _codes(writer: Writer, name: str, kernel: _Kernel) -> str:
    """Adds a kernel's INT8 codes, in the storage that is asked for."""
    small = kernel.codes.max() < 2**_MOST_BITS_OF_UINT4
    if writer.storage != "uint4" or not small:
        return writer.constant(f"{name}/codes", kernel.int8())
    writer.has_uint4 = True
    codes = writer.constant(f"{name}/codes", kernel.codes.astype(ml_dtypes.uint4))
    codes = writer.add("Cast", f"{name}/codes", [codes], f"{name}/wide", to=TensorProto.INT32)
    for op, part in (("Add", "shift"), ("Mul", "factor")):
        amount = getattr(kernel, part).astype(np.int32).reshape(-1, 1, 1, 1)
        constant = writer.constant(f"{name}/{part}", amount)
        codes = writer.add(op, f"{name}/{part}", [codes, constant], f"{name}/{part}ed")
    return writer.add("Cast", f"{name}/int8", [codes], f"{name}/int8", to=TensorProto.INT8)


def _dequantized(writer: Writer, name: str, codes: str, step: np.ndarray) -> str:
    """Adds dequantized integers, by output channel, as engines' integer kernels take them."""
    dtype = np.int32 if name.endswith("/bias") else np.int8
    parameters = [
        writer.constant(f"{name}/step", step),
        writer.constant(f"{name}/zero_point", np.zeros(len(step), dtype)),
    ]
    output = f"{name}/dequantized"
    return writer.add("DequantizeLinear", name, [codes, *parameters], output, axis=0)


def _scaled(writer: Writer, name: str, codes: str, step: np.ndarray) -> str:
    """Adds the product of codes and step, by output channel, that engines compute once."""
    kernel = writer.add("Cast", name, [codes], f"{name}/float", to=TensorProto.FLOAT)
    constant = writer.constant(f"{name}/step", _by_channel(step))
    return writer.add("Mul", name, [kernel, constant], f"{name}/kernel")


def _float_kernel(writer: Writer, name: str, kernel: _Kernel) -> str:
    """Adds a kernel that no engine takes for one of integers.

    Of a dense layer's product of INT8 and step, OpenVINO makes one that rounds its input to 8 bits;
    not of INT32.
    """
    codes = _codes(writer, name, kernel)
    codes = writer.add("Cast", f"{name}/wide", [codes], f"{name}/int32", to=TensorProto.INT32)
    if not kernel.offset.any():
        return _scaled(writer, name, codes, kernel.step)
    whole = writer.add("Cast", f"{name}/whole", [codes], f"{name}/whole", to=TensorProto.FLOAT)
    offset = writer.constant(f"{name}/offset", _by_channel(kernel.offset))
    whole = writer.add("Add", f"{name}/offset", [whole, offset], f"{name}/restored")
    constant = writer.constant(f"{name}/step", _by_channel(kernel.step))
    return writer.add("Mul", name, [whole, constant], f"{name}/kernel")


def _by_channel(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).reshape(-1, 1, 1, 1)


def _constant_bias(writer: Writer, name: str, bias: np.ndarray | None) -> list[str]:
    return [] if bias is None else [writer.constant(f"{name}/bias", bias)]
