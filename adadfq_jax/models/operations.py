"""What nodes of a graph can be: one entry of `OPERATIONS` for each kind.

Every export writes the same kinds in its own language, each from one table of that format:
`exporting/onnx_operations.py` and `exporting/numpy_reader.py`. A new kind is an entry in all
three, which a test compares. Arrays are (B, H, W, channels) or (B, channels).
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.models.layers import (
    Calibration,
    QuantActivation,
    QuantConv,
    QuantDense,
    QuantReLU,
)
from adadfq_jax.ops import pooling
from adadfq_jax.ops.moments import global_average

# Of attributes in files: more would be no layer, no image, and no padding of one.
_LARGEST = 2**20
_LARGEST_SIDE, _LARGEST_PADDING = 2048, 1024

# These only choose or move values, so that what was quantized stays so, codes and all.
PASSES_CODES = ("max_pool", "subsample", "slice_channels", "shuffle_channels")

RESAMPLING = ("nearest", "bilinear", "bilinear_corners", "average")


def _is_whole(value: Any, smallest: int = 0) -> bool:
    return type(value) is int and smallest <= value <= _LARGEST


def _is_count(value: Any) -> bool:
    return _is_whole(value, 1)


def _is_number(value: Any) -> bool:
    # Not by math.isfinite, for which an integer may be too large.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _is_pair(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(_is_count(side) and side <= _LARGEST_SIDE for side in value)
    )


def _is_padding(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(isinstance(side, tuple) and len(side) == 2 for side in value)
        and all(_is_whole(part) and part <= _LARGEST_PADDING for side in value for part in side)
    )


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) in (1, 3) and all(map(_is_count, value))


@dataclasses.dataclass(frozen=True)
class Operation:
    """One kind of node.

    Attributes:
      attributes: what each of its attributes must be.
      inputs: how many nodes it reads; None: one or more.
      compute: of an operation without variables, maps (settings, *arrays) to an array.
      layer: of a layer, maps (settings, norm, calibration) to a function that makes its module, of
        a name; see `GraphNetwork` for norm and calibration.
      activation: whether what it returns is quantized in a student.
    """

    attributes: Mapping[str, Callable[[Any], bool]] = dataclasses.field(default_factory=dict)
    inputs: int | None = 1
    compute: Callable[..., jax.Array] | None = None
    layer: Callable[..., Callable[..., nn.Module]] | None = None
    activation: bool = False


def _module(kind: type[nn.Module]) -> Callable[..., Callable[..., nn.Module]]:
    """Returns how a layer's module is made whose fields are the node's attributes."""

    def layer(settings: Mapping[str, Any], norm: Any, calibration: Calibration):
        return lambda name: kind(**settings, name=name, parent=None)

    return layer


def _norm_layer(settings: Mapping[str, Any], norm: Any, calibration: Calibration):
    trained = {} if settings["affine"] else {"use_scale": False, "use_bias": False}
    return lambda name: norm(epsilon=settings["epsilon"], **trained, name=name, parent=None)


def _relu_layer(settings: Mapping[str, Any], norm: Any, calibration: Calibration):
    return lambda name: QuantReLU(**settings, calibration=calibration, name=name, parent=None)


def _activation(function: str, **attributes: Callable[[Any], bool]) -> Operation:
    def layer(settings: Mapping[str, Any], norm: Any, calibration: Calibration):
        return lambda name: QuantActivation(function, settings, calibration, name=name, parent=None)

    return Operation(attributes, layer=layer, activation=True)


def _multiply(settings: Mapping[str, Any], x: jax.Array, y: jax.Array) -> jax.Array:
    # A gate of an average, which is in float32 at least, leaves an image in its own type.
    return (x * y).astype(max(x, y, key=lambda part: math.prod(part.shape[1:])).dtype)


def _max_pool(settings: Mapping[str, Any], x: jax.Array) -> jax.Array:
    window, strides, padding = (settings[name] for name in ("window", "strides", "padding"))
    if (window, strides, padding) == ((3, 3), (2, 2), ((1, 1), (1, 1))):
        return pooling.max_pool_3x3(x)
    return nn.max_pool(x, window, strides, padding)


def _average_pool(settings: Mapping[str, Any], x: jax.Array) -> jax.Array:
    window, strides, padding = (settings[name] for name in ("window", "strides", "padding"))
    if window == strides == (2, 2) and padding == ((0, 0), (0, 0)):
        return pooling.average_pool(x)
    return nn.avg_pool(
        x, window, strides, padding, count_include_pad=settings["include_padding"]
    ).astype(x.dtype)


def _shuffle(settings: Mapping[str, Any], x: jax.Array) -> jax.Array:
    *shape, channels = x.shape
    parts = x.reshape(*shape, settings["groups"], channels // settings["groups"])
    return parts.swapaxes(-1, -2).reshape(x.shape)


def _pad(settings: Mapping[str, Any], x: jax.Array) -> jax.Array:
    around = ((0, 0), *settings["padding"], (0, 0))
    return jnp.pad(x, around, constant_values=settings["value"])


def resampling_matrix(method: str, inputs: int, outputs: int) -> np.ndarray:
    """Returns the weights of each pixel before in each pixel after, along one direction.

    Args:
      method: of `RESAMPLING`, as PyTorch does it: `nearest`; `bilinear`, of which
        `bilinear_corners` aligns the corners; `average` is adaptive average pooling.
      inputs, outputs: pixels before and after.

    Returns:
      (outputs, inputs), float32, each row of sum 1.
    """
    matrix = np.zeros((outputs, inputs))
    for row in range(outputs):
        if method == "nearest":
            matrix[row, row * inputs // outputs] = 1
        elif method == "average":
            first, last = row * inputs // outputs, -(-(row + 1) * inputs // outputs)
            matrix[row, first:last] = 1 / (last - first)
        else:
            place = (row + 0.5) * inputs / outputs - 0.5
            if method == "bilinear_corners":
                place = row * (inputs - 1) / max(outputs - 1, 1)
            place = max(place, 0)
            first = min(int(place), inputs - 1)
            matrix[row, first] += 1 - (place - first)
            matrix[row, min(first + 1, inputs - 1)] += place - first
    return matrix.astype(np.float32)


def _resample(settings: Mapping[str, Any], x: jax.Array) -> jax.Array:
    down, across = (
        jnp.asarray(resampling_matrix(settings["method"], *sides), x.dtype)
        for sides in zip(x.shape[1:3], settings["size"], strict=True)
    )
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("oh,pw,bhwc->bopc", down, across, x, precision=exact)


_POOL = {"window": _is_pair, "strides": _is_pair, "padding": _is_padding}

OPERATIONS: dict[str, Operation] = {
    # Layers, with variables.
    "conv": Operation(
        {
            "features": _is_count,
            "kernel_size": _is_pair,
            "strides": _is_pair,
            "padding": _is_padding,
            "dilation": _is_pair,
            "groups": _is_count,
            "use_bias": _is_flag,
        },
        layer=_module(QuantConv),
    ),
    "dense": Operation({"features": _is_count, "use_bias": _is_flag}, layer=_module(QuantDense)),
    "norm": Operation(
        {"epsilon": lambda value: _is_number(value) and value >= 0, "affine": _is_flag},
        layer=_norm_layer,
    ),
    # Activation functions, which quantize.
    "relu": Operation(
        {"largest": lambda value: value is None or (_is_number(value) and value > 0)},
        layer=_relu_layer,
        activation=True,
    ),
    "leaky_relu": _activation("leaky_relu", slope=_is_number),
    "silu": _activation("silu"),
    "hardswish": _activation("hardswish"),
    "gelu": _activation("gelu", approximate=_is_flag),
    "hardtanh": _activation("hardtanh", min=_is_number, max=_is_number),
    # A quantizer of what no activation function made; see `sums.py`.
    "quantizer": _activation("identity"),
    # Gates.
    "sigmoid": Operation(compute=lambda settings, x: nn.sigmoid(x)),
    "hardsigmoid": Operation(compute=lambda settings, x: nn.hard_sigmoid(x)),
    # Arithmetic.
    "add": Operation(inputs=2, compute=lambda settings, x, y: x + y),
    "multiply": Operation(inputs=2, compute=_multiply),
    "scale": Operation(
        {"factor": _is_number, "shift": _is_number},
        compute=lambda settings, x: x * settings["factor"] + settings["shift"],
    ),
    # Channels.
    "concatenate": Operation(
        inputs=None, compute=lambda settings, *parts: jnp.concatenate(parts, axis=-1)
    ),
    "slice_channels": Operation(
        {"start": _is_whole, "stop": _is_count},
        compute=lambda settings, x: x[..., settings["start"] : settings["stop"]],
    ),
    "shuffle_channels": Operation({"groups": _is_count}, compute=_shuffle),
    "pad_channels": Operation(
        {"before": _is_whole, "after": _is_whole},
        compute=lambda settings, x: jnp.pad(
            x, ((0, 0),) * 3 + ((settings["before"], settings["after"]),)
        ),
    ),
    # Pixels.
    "subsample": Operation(
        {"strides": _is_pair},
        compute=lambda settings, x: x[:, :: settings["strides"][0], :: settings["strides"][1]],
    ),
    "pad": Operation({"padding": _is_padding, "value": _is_number}, compute=_pad),
    "max_pool": Operation(_POOL, compute=_max_pool),
    "average_pool": Operation(_POOL | {"include_padding": _is_flag}, compute=_average_pool),
    "mean": Operation(compute=lambda settings, x: global_average(x)),
    "resample": Operation(
        {"method": lambda value: value in RESAMPLING, "size": _is_pair}, compute=_resample
    ),
    # Shapes. PyTorch's order of (channels, H, W) is kept where pixels become features.
    "flatten": Operation(
        compute=lambda settings, x: jnp.moveaxis(x, -1, 1).reshape(x.shape[0], -1)
    ),
    "reshape": Operation(
        {"shape": _is_shape}, compute=lambda settings, x: x.reshape(x.shape[0], *settings["shape"])
    ),
}
