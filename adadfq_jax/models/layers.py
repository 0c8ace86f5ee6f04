"""Layers of teacher and student.

The variable collections that a caller hands to `apply` decide what a layer does:

  params, batch_stats   always present: weights, and the teacher's BatchNorm statistics.
  bits                  {layer: {"weight" | "activation": int32}}. Absent: full precision, the
                        teacher. Present: fake-quantized, the student. With a "symmetric" beside
                        "weight", of any value, the kernel's zero point is -2^(k-1).
  ranges                {layer: {"minimum", "maximum"}}: quantization ranges. If the caller makes
                        the collection mutable (calibration), an activation's range is updated
                        before it is used. A kernel has a range, by output channel, only where
                        ranges are learned; else it is quantized between its current extremes.
  clipping              learned ends of those ranges, which replace the ends in `ranges` and have a
                        gradient. With them, the gradient of a quantizer by its input is 0 where
                        the input is clipped and 1 elsewhere; without them it is 1 everywhere.
  statistics            mean and variance of each BatchNorm's input over this device's share of the
                        batch, written when mutable (for L_BNS); see `apply_with_moments` and
                        `unite_moments`.

`init` creates `params`, `batch_stats`, `bits` and `ranges`.

What is quantized, in every network: the kernel of every convolution and dense layer, by output
channel; and what follows an activation function (ReLU, ReLU6, hardtanh, leaky ReLU, SiLU,
hardswish, GELU), with one static range, whose lower end is negative where the function's values
are. Not quantized: the images, biases, gates (sigmoid, hardsigmoid) and their products, sums,
pools. Where ranges are learned, an activation's upper end is.

Layers compute in the type of their input, whatever the type of their parameters, so images in
bfloat16 make a teacher of that precision. Moments, the global average and therefore the logits are
in float32 at least.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from adadfq_jax.ops.convolutions import convolution, depthwise_convolution
from adadfq_jax.ops.moments import batch_moments, scale_and_shift
from adadfq_jax.quantization import codes, ranges
from adadfq_jax.quantization.bits import SYMMETRIC

COLOURS = 3  # channels of images, unless a network says another number

# Types that teacher and generator can compute in. None is JAX's default type, float64 where x64 is
# enabled. On a GPU, products in float32 may be computed in TensorFloat-32.
PRECISIONS = {"float32": None, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How activation ranges follow a batch.

    Attributes:
      rule: name in `ranges.RANGE_RULES`.
      axis_name: mapped axis over which the batch is spread; None for a batch on one device.
    """

    rule: str = "minmax"
    axis_name: str | None = None


def _bits(module: nn.Module, name: str) -> jax.Array | None:
    """Returns the layer's bit-width, or None where it runs in full precision."""
    if module.is_initializing():
        module.variable("bits", name, lambda: jnp.int32(codes.MAX_BITS))
        return None
    return module.get_variable("bits", name)


def _ends(module: nn.Module) -> tuple[jax.Array, jax.Array]:
    """Returns the (minimum, maximum) of the layer's range, learned where they are."""
    return tuple(
        module.get_variable("clipping", name, module.get_variable("ranges", name))
        for name in ("minimum", "maximum")
    )


def _quantize(
    module: nn.Module, x: jax.Array, ends: tuple[jax.Array, jax.Array], bits: jax.Array
) -> jax.Array:
    """Fake-quantizes x by a range, with a gradient for learned ends."""
    if module.has_variable("clipping", "maximum"):
        return codes.fake_quantize_learned(x, *ends, bits)
    return codes.fake_quantize(x, *ends, bits)


def _quantize_kernel(module: nn.Module, kernel: jax.Array, bits: jax.Array) -> jax.Array:
    """Fake-quantizes a kernel by the layer's range, or from min to max where there is none."""
    has_range = module.has_variable("ranges", "minimum")
    ends = _ends(module) if has_range else ranges.weight_range(kernel)
    if module.has_variable("bits", SYMMETRIC):
        ends = ranges.symmetric_range(*ends, bits)
    return _quantize(module, kernel, ends, bits)


class QuantConv(nn.Module):
    """2-D convolution whose kernel is quantized per output channel where bits are given.

    Attributes:
      features: output channels.
      kernel_size: side of a square kernel, or (height, width).
      strides: the same in both directions, or (down, across).
      padding: zeros added on every side, as PyTorch counts them, or ((top, bottom), (left, right));
        None keeps the size at stride 1.
      groups: feature groups; as many as input channels for a depthwise convolution.
      use_bias: whether to add a bias, which is never quantized.
      dilation: distance of the kernel's taps, or (down, across).
    """

    features: int
    kernel_size: int | tuple[int, int]
    strides: int | tuple[int, int] = 1
    padding: int | tuple[tuple[int, int], tuple[int, int]] | None = None
    groups: int = 1
    use_bias: bool = False
    dilation: int | tuple[int, int] = 1

    def geometry(self) -> dict[str, Any]:
        """Returns kernel_size, strides, padding and dilation in their long forms."""
        height, width = both(self.kernel_size)
        padding = self.padding
        if padding is None:
            padding = ((height // 2,) * 2, (width // 2,) * 2)
        elif isinstance(padding, int):
            padding = ((padding,) * 2,) * 2
        return {
            "kernel_size": (height, width),
            "strides": both(self.strides),
            "padding": padding,
            "dilation": both(self.dilation),
        }

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, in) to (B, H', W', features)."""
        geometry = self.geometry()
        shape = (*geometry["kernel_size"], x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bits = _bits(self, "weight")
        if bits is not None:
            kernel = _quantize_kernel(self, kernel, bits)
        if (*geometry.values(), self.groups) == _PLAIN_3X3:
            x = convolution(x, kernel.astype(x.dtype))
        elif self.groups == x.shape[-1] > 1:
            _, *depthwise = geometry.values()
            x = depthwise_convolution(x, kernel.astype(x.dtype), *depthwise)
        else:
            x = jax.lax.conv_general_dilated(
                x,
                kernel.astype(x.dtype),
                window_strides=geometry["strides"],
                padding=geometry["padding"],
                rhs_dilation=geometry["dilation"],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=self.groups,
            )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(x.dtype)
        return x


# What `ops/convolutions.py` has a faster form of: kernel, strides, padding, dilation, groups.
_PLAIN_3X3 = ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)


def both(sides: int | tuple[int, int]) -> tuple[int, int]:
    """Returns (down, across) of a number that may be the same in both directions."""
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


class QuantDense(nn.Module):
    """Dense layer whose kernel is quantized per output unit where bits are given.

    Attributes:
      features: output units.
      use_bias: whether to add a bias, which is never quantized.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, in) to (B, features)."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bits = _bits(self, "weight")
        if bits is not None:
            kernel = _quantize_kernel(self, kernel, bits)
        if not self.use_bias:
            return x @ kernel
        return x @ kernel + self.param("bias", nn.initializers.zeros, (self.features,))


class ActivationLayer(nn.Module):
    """An activation function followed, where bits are given, by a quantizer with one static range.

    A class of it has the field `calibration` and the method `activate`.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps an array of any shape to the same shape."""
        x = self.activate(x)
        bits = _bits(self, "activation")
        if self.is_initializing():
            self.variable("ranges", "minimum", jnp.zeros, (), x.dtype)
            self.variable("ranges", "maximum", jnp.zeros, (), x.dtype)
            self.variable("ranges", "updates", jnp.zeros, (), jnp.int32)
        if bits is None:
            return x
        if self.is_mutable_collection("ranges"):
            self._calibrate(jax.lax.stop_gradient(x), bits)
        return _quantize(self, x, _ends(self), bits)

    def _calibrate(self, x: jax.Array, bits: jax.Array) -> None:
        find = ranges.RANGE_RULES[self.calibration.rule]
        updates = self.get_variable("ranges", "updates")
        for name, value in zip(
            ("minimum", "maximum"), find(x, bits, self.calibration.axis_name), strict=True
        ):
            average = self.get_variable("ranges", name)
            self.put_variable("ranges", name, ranges.update_range(average, value, updates))
        self.put_variable("ranges", "updates", updates + 1)


class QuantReLU(ActivationLayer):
    """ReLU followed, where bits are given, by a quantizer with one static range.

    Attributes:
      largest: upper bound of the activation, 6 for ReLU6, None for ReLU.
      calibration: how the range follows a batch.
    """

    largest: float | None = None
    calibration: Calibration = Calibration()

    def activate(self, x: jax.Array) -> jax.Array:
        """Returns the activation before its quantizer."""
        return nn.relu(x) if self.largest is None else jnp.clip(x, 0, self.largest)


# The activation functions besides ReLU, all with negative values, and what stands for none.
ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    "leaky_relu": lambda x, slope: jnp.where(x >= 0, x, slope * x),
    "silu": nn.silu,
    "hardswish": nn.hard_swish,
    "gelu": nn.gelu,
    "hardtanh": jnp.clip,
    "identity": lambda x: x,
}


class QuantActivation(ActivationLayer):
    """An activation function other than ReLU, followed, where bits are given, by a quantizer.

    Its range has a negative end as calibration finds it.

    Attributes:
      function: of `ACTIVATIONS`.
      settings: the function's constants.
      calibration: how the range follows a batch.
    """

    function: str
    settings: Mapping[str, Any] = FrozenDict()
    calibration: Calibration = Calibration()

    def activate(self, x: jax.Array) -> jax.Array:
        """Returns the activation before its quantizer."""
        return ACTIVATIONS[self.function](x, **self.settings)


class FrozenBatchNorm(nn.Module):
    """BatchNorm in evaluation mode: it uses stored statistics and never updates them.

    Variables are named as in `flax.linen.BatchNorm`, so that a network trained with that layer can
    be read without renaming.

    Attributes:
      epsilon: added to the variance.
      use_scale, use_bias: whether a trained scale, and a bias, follow.
    """

    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (..., channels) to the same shape."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels) if self.use_scale else 1
        bias = self.param("bias", nn.initializers.zeros, channels) if self.use_bias else 0
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, x.dtype).value
        variance = self.variable("batch_stats", "var", jnp.ones, channels, x.dtype).value
        if self.is_mutable_collection("statistics") and not self.is_initializing():
            self.put_variable("statistics", "input", batch_moments(x))
        # Factored so that an element costs one multiplication and one addition.
        factor = scale * jax.lax.rsqrt(variance + self.epsilon)
        return scale_and_shift(x, factor, bias - mean * factor).astype(x.dtype)


def input_shape(module: nn.Module, image_size: int) -> tuple[int, int, int]:
    """Returns the (H, W, channels) of a classifier's images.

    Args:
      module: the classifier; of colours, unless it says its `channels`.
      image_size: side of its images in pixels.
    """
    return image_size, image_size, getattr(module, "channels", COLOURS)


def apply_with_moments(
    network: nn.Module, variables: Any, images: jax.Array
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Returns a network's logits and the (mean, variance) of each BatchNorm's input.

    Args:
      network: the classifier's module.
      variables: its collections.
      images: normalised, (B, H, W, channels).
    """
    logits, written = network.apply(variables, images, mutable=["statistics"])
    return logits, leaves_by_layer(written["statistics"], lambda layer: layer["input"])


def stored_statistics(variables: Any) -> list[tuple[jax.Array, jax.Array]]:
    """Returns each BatchNorm's running (mean, variance), in the order of `apply_with_moments`."""
    return leaves_by_layer(variables["batch_stats"], lambda layer: (layer["mean"], layer["var"]))


def leaves_by_layer(tree: Any, read: Callable[[Any], Any]) -> list[Any]:
    """Reads a value from each layer's dict in a collection, in the order of the layers' names."""
    if not any(isinstance(child, dict) for child in tree.values()):
        return [read(tree)]
    return [value for name in sorted(tree) for value in leaves_by_layer(tree[name], read)]
