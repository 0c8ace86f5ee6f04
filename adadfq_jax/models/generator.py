"""The generator G of the GDFQ family (Xu et al., ECCV 2020), conditioned on labels in two ways.

For CIFAR-size images, an embedding of the class multiplies the noise. For ImageNet-size images,
every BatchNorm has a scale and a bias for each class (Dumoulin et al., ICLR 2017).

The BatchNorms always use the statistics of the (global) batch, also when sampling. An image thus
depends on the batch's other classes: to show one class, sample mixed classes and sort them.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adadfq_jax.models.layers import COLOURS
from adadfq_jax.ops.convolutions import convolution, upsampled_convolution
from adadfq_jax.ops.moments import batch_moments, unite_moments

CONDITIONINGS = ("embedding", "batch_norm")  # what depends on the labels

_DENSE_KERNEL, _DENSE_INPUT, _DENSE_OUTPUT = "dense_kernel", "dense_input", "dense_output"

LATENT_SIZE = 100

_CHANNELS = 128

# As in the authors' program, where `BatchNorm2d(128, 0.8)` sets epsilon, not momentum.
_EPSILON = 0.8

_SLOPE = 0.2


def _uniform(fan_in: int):
    """Returns PyTorch's default initializer: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def initialize(key, shape, dtype=None):
        return jax.random.uniform(key, shape, dtype or jnp.result_type(float), -bound, bound)

    return initialize


class BatchNorm(nn.Module):
    """Normalisation by the statistics of the batch.

    Attributes:
      epsilon: added to the variance.
      affine: whether a trained scale and bias follow.
      classes: number of classes C, where each class has a scale and a bias; None where all classes
        share one.
      axis_name: mapped axis over which the batch is spread; None for a batch on one device.
    """

    epsilon: float = 1e-5
    affine: bool = True
    classes: int | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Maps (B, ..., channels) to the same shape; `classes` needs the labels y, (B,)."""
        dtype = x.dtype
        mean, variance = batch_moments(x)
        if self.axis_name is not None:
            shares = jax.lax.all_gather(jnp.stack([mean, variance]), self.axis_name, axis=1)
            mean, variance = unite_moments(*shares)
        x = (x - mean) * jax.lax.rsqrt(variance + self.epsilon)
        if self.affine:
            tables = () if self.classes is None else (self.classes,)
            scale = self.param("scale", nn.initializers.ones, (*tables, x.shape[-1]))
            bias = self.param("bias", nn.initializers.zeros, (*tables, x.shape[-1]))
            if self.classes is not None:
                shape = (-1, *(1,) * (x.ndim - 2), x.shape[-1])
                scale, bias = scale[labels].reshape(shape), bias[labels].reshape(shape)
            x = x * scale + bias
        return x.astype(dtype)


class Conv(nn.Module):
    """3x3 convolution with bias, optionally of the input enlarged twofold (nearest neighbour).

    The enlarged form never builds the large input: an output pixel sees only 2x2 input pixels, so
    each of the four output phases is a 2x2 convolution whose taps are sums of the 3x3 kernel's.
    That is 2.25 times fewer multiplications, and the same function, zero padding included.

    Attributes:
      features: output channels.
      upsample: whether to enlarge first.
    """

    features: int
    upsample: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, H, W, in) to (B, H, W, features), or to (B, 2H, 2W, features)."""
        shape = (3, 3, x.shape[-1], self.features)
        fan_in = math.prod(shape[:3])
        kernel = self.param("kernel", _uniform(fan_in), shape)
        bias = self.param("bias", _uniform(fan_in), (self.features,))
        if self.upsample:
            x = upsampled_convolution(x, kernel)
        else:
            x = convolution(x, kernel.astype(x.dtype))
        return x + bias.astype(x.dtype)


class Generator(nn.Module):
    """Maps noise and labels to images in the teacher's normalised input space.

    Attributes:
      image_size: side s of the images in pixels. Where 4 does not divide it, the next multiple is
        generated, and the centre cut out.
      classes: number of classes C.
      conditioning: name in `CONDITIONINGS`: what depends on the labels.
      channels: of the images.
      dtype: type of the convolutions; None for the noise's type. The batch's statistics, the
        normalisation by them and the images are in float32 at least.
      remat: whether the backward pass computes the values between convolutions again, instead of
        keeping them in memory.
      axis_name: mapped axis over which the batch is spread; None for a batch on one device.
    """

    image_size: int
    classes: int
    conditioning: str = "embedding"
    channels: int = COLOURS
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, noise: jax.Array, labels: jax.Array) -> jax.Array:
        """Maps z (B, 100) and y (B,) to images (B, s, s, channels)."""
        side = -(-self.image_size // 4)
        if self.conditioning == "embedding":
            embedding = self.param(
                "embedding", nn.initializers.normal(1.0), (self.classes, LATENT_SIZE)
            )
            noise = embedding[labels] * noise
        units = side * side * _CHANNELS
        kernel = self.param(_DENSE_KERNEL, _uniform(LATENT_SIZE), (LATENT_SIZE, units))
        bias = self.param("dense_bias", _uniform(LATENT_SIZE), (units,))
        # `linearize` returns these factors of the kernel's gradient.
        self.sow("intermediates", _DENSE_INPUT, noise)
        x = self.perturb(_DENSE_OUTPUT, noise @ kernel) + bias
        x = x.astype(self.dtype or noise.dtype)
        x = self._norm("norm1")(x.reshape(-1, side, side, _CHANNELS), labels)
        x = Conv(_CHANNELS, upsample=True, name="conv1")(x)
        stage = nn.remat(Generator._stage, static_argnums=(3,)) if self.remat else Generator._stage
        x = stage(self, x, labels, 2)
        x = stage(self, x, labels, 3)
        x = nn.tanh(x.astype(noise.dtype))
        x = BatchNorm(affine=False, axis_name=self.axis_name, name="norm4")(x)
        before = (4 * side - self.image_size) // 2
        inside = slice(before, before + self.image_size)
        return x[:, inside, inside]

    def _stage(self, x: jax.Array, labels: jax.Array, number: int) -> jax.Array:
        x = nn.leaky_relu(self._norm(f"norm{number}", _EPSILON)(x, labels), _SLOPE)
        if number == 2:
            return Conv(_CHANNELS // 2, upsample=True, name="conv2")(x)
        return Conv(self.channels, name="conv3")(x)

    def _norm(self, name: str, epsilon: float = 1e-5) -> nn.Module:
        classes = self.classes if self.conditioning == "batch_norm" else None
        return BatchNorm(epsilon, classes=classes, axis_name=self.axis_name, name=name)


def linearize(
    generator: Generator, params: Any, noise: jax.Array, labels: jax.Array
) -> tuple[jax.Array, Callable[[jax.Array], tuple[Any, dict[str, tuple[jax.Array, jax.Array]]]]]:
    """Makes images, and a function that pulls their cotangent back to the parameters.

    Args:
      generator: the module.
      params: the generator's parameters.
      noise, labels: z (B, 100) and y (B,).

    Returns:
      (images (B, s, s, channels), function). The function takes the images' cotangent and
      returns the gradient by `params` and, for the dense kernel, its two factors: the layer's input
      and the cotangent of its output. `sum_gradients` takes both.
    """

    def make(params, output):
        images, sown = generator.apply(
            {"params": params, "perturbations": {_DENSE_OUTPUT: output}},
            noise,
            labels,
            mutable=["intermediates"],
        )
        return images, sown["intermediates"][_DENSE_INPUT][0]

    unmoved = jnp.zeros((len(noise), params[_DENSE_KERNEL].shape[1]), noise.dtype)
    images, pull, dense_input = jax.vjp(make, params, unmoved, has_aux=True)

    def pull_back(cotangent):
        gradients, to_output = pull(cotangent)
        return gradients, {_DENSE_KERNEL: (dense_input, to_output)}

    return images, pull_back
