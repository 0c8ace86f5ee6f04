"""The generator G of the GDFQ family (Xu et al., ECCV 2020), in two forms that take labels apart.

For CIFAR-size images the noise is multiplied by an embedding of the class; for ImageNet-size ones
every BatchNorm has a scale and a bias of each class (Dumoulin et al., ICLR 2017).

Its BatchNorms use the statistics of the (global) batch always, when sampling too: draw mixed
classes, then sort.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adadfq_jax.models.convolutions import convolution
from adadfq_jax.models.layers import batch_moments, unite_moments

CONDITIONINGS = ("embedding", "batch_norm")  # where labels come in
# The parameter whose gradient on each device is that of the whole batch already; see `_project`.
SUMMED = "dense_kernel"
LATENT_SIZE = 100
_CHANNELS = 128
# What the reference runs: `BatchNorm2d(128, 0.8)` sets epsilon, not momentum.
_EPSILON = 0.8
_SLOPE = 0.2


def _uniform(fan_in: int):
    """Returns PyTorch's default initializer: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)

    def initialize(key, shape, dtype=None):
        return jax.random.uniform(key, shape, dtype or jnp.result_type(float), -bound, bound)

    return initialize


class BatchNorm(nn.Module):
    """Normalisation by the batch's own statistics.

    Attributes:
      epsilon: added to the variance.
      affine: whether a trained scale and bias follow.
      classes: number of classes C that have a scale and a bias each; None for one of all.
      axis_name: mapped axis over which the batch is spread.
    """

    epsilon: float = 1e-5
    affine: bool = True
    classes: int | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Maps (B, ..., channels) to itself; y (B,) where classes have a scale and a bias."""
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


def upsampled_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves the twofold nearest-neighbour enlargement of x, in sub-pixel form.

    Args:
      x: (B, H, W, in).
      kernel: (3, 3, in, out).

    Returns:
      (B, 2H, 2W, out): what a 3x3 convolution, zero-padded by 1, of the enlarged x returns.
    """
    batch, height, width, _ = x.shape
    # Four convolutions: XLA's CPU backend has a fast kernel gradient for these, but not for one
    # convolution that makes all phases as its channels, nor for a transposed one.
    rows = [
        jnp.stack([_phase(x, kernel, row, column) for column in range(2)], axis=3)
        for row in range(2)
    ]  # B, H, W, 2, out
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, -1)


def _phase(x: jax.Array, kernel: jax.Array, row: int, column: int) -> jax.Array:
    """Makes the pixels (2m + row, 2n + column) of the enlarged convolution, (B, H, W, out)."""
    return jax.lax.conv_general_dilated(
        x,
        _merge_taps(_merge_taps(kernel, row, axis=0), column, axis=1).astype(x.dtype),
        (1, 1),
        [(1 - row, row), (1 - column, column)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _merge_taps(kernel: jax.Array, phase: int, axis: int) -> jax.Array:
    """Adds the taps that meet the same input pixel: phase 0 sees m-1, m, m, phase 1 m, m, m+1."""
    first, second, third = jnp.split(kernel, 3, axis)
    taps = (first + second, third) if phase else (first, second + third)
    return jnp.concatenate(taps, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(noise: jax.Array, kernel: jax.Array, axis_name: str | None) -> jax.Array:
    """Multiplies noise (B, 100) with a kernel (100, units).

    The kernel's gradient is summed over the mapped axis here, since it can be had for less: devices
    gather as many rows as the batch has images, where a sum takes a hundred rows twice. For images
    of 224 pixels the sum would be three quarters of all that the players' gradients take.
    """
    return noise @ kernel


def _project_forward(noise, kernel, axis_name):
    return _project(noise, kernel, axis_name), (noise, kernel)


def _project_backward(axis_name, saved, cotangent):
    noise, kernel = saved
    to_noise = cotangent @ kernel.T
    if axis_name is None:
        return to_noise, noise.T @ cotangent
    if len(noise) * jax.lax.axis_size(axis_name) > 2 * LATENT_SIZE:
        return to_noise, jax.lax.psum(noise.T @ cotangent, axis_name)
    noise, cotangent = jax.lax.all_gather((noise, cotangent), axis_name, tiled=True)
    return to_noise, noise.T @ cotangent


_project.defvjp(_project_forward, _project_backward)


class Generator(nn.Module):
    """Maps noise and labels to images in the teacher's normalised input space.

    Attributes:
      image_size: side s of the images in pixels, divisible by 4.
      classes: number of classes C.
      conditioning: of `CONDITIONINGS`, where labels come in.
      dtype: of the convolutions; by default that of the noise. The batch's statistics, their
        normalisation and the images are in float32 at least.
      remat: whether to make what lies between its convolutions again for the backward pass, instead
        of keeping it.
      axis_name: mapped axis over which a batch is spread.
    """

    image_size: int
    classes: int
    conditioning: str = "embedding"
    dtype: Any = None
    remat: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, noise: jax.Array, labels: jax.Array) -> jax.Array:
        """Maps z (B, 100) and y (B,) to images (B, s, s, 3)."""
        side = self.image_size // 4
        if self.conditioning == "embedding":
            embedding = self.param(
                "embedding", nn.initializers.normal(1.0), (self.classes, LATENT_SIZE)
            )
            noise = embedding[labels] * noise
        units = side * side * _CHANNELS
        kernel = self.param(SUMMED, _uniform(LATENT_SIZE), (LATENT_SIZE, units))
        bias = self.param("dense_bias", _uniform(LATENT_SIZE), (units,))
        x = _project(noise, kernel, self.axis_name) + bias
        x = x.astype(self.dtype or noise.dtype)
        x = self._norm("norm1")(x.reshape(-1, side, side, _CHANNELS), labels)
        x = Conv(_CHANNELS, upsample=True, name="conv1")(x)
        stage = nn.remat(Generator._stage, static_argnums=(3,)) if self.remat else Generator._stage
        x = stage(self, x, labels, 2)
        x = stage(self, x, labels, 3)
        x = nn.tanh(x.astype(noise.dtype))
        return BatchNorm(affine=False, axis_name=self.axis_name, name="norm4")(x)

    def _stage(self, x: jax.Array, labels: jax.Array, number: int) -> jax.Array:
        x = nn.leaky_relu(self._norm(f"norm{number}", _EPSILON)(x, labels), _SLOPE)
        if number == 2:
            return Conv(_CHANNELS // 2, upsample=True, name="conv2")(x)
        return Conv(3, name="conv3")(x)

    def _norm(self, name: str, epsilon: float = 1e-5) -> nn.Module:
        classes = self.classes if self.conditioning == "batch_norm" else None
        return BatchNorm(epsilon, classes=classes, axis_name=self.axis_name, name=name)
