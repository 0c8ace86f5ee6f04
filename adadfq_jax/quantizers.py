"""Asymmetric uniform quantization, simulated: ranges, codes, and their straight-through gradient.

A k-bit quantizer over [minimum, maximum] has n = 2^k - 1 steps:

  step       = max(maximum - minimum, 1e-8) / n
  scale      = 1 / step, computed from the range itself
  zero_point = round(scale * minimum)                          (an integer, of any size)
  codes      = clip(round(scale * x - zero_point), 0, n)       (an integer that fits k bits)
  x_hat      = (codes + zero_point) step

so that |x - x_hat| is at most half a step for every x inside the range. Codes and zero point stay
apart because only the codes fit k bits: a range that excludes 0 has a zero point outside [0, n],
and an almost constant one has a huge zero point. Source: the protocol shared by the GDFQ family
(Xu et al., ECCV 2020), which stores codes - 2^(k-1).

The bit-width k is an int32 array, so that changing it never recompiles anything.
"""

import jax
import jax.numpy as jnp
import numpy as np

MAX_BITS = 8
RANGE_DECAY = 0.9
_SMALLEST_WIDTH = 1e-8
# Values of an image that the error of a range is measured on.
_LOOKED_AT, _FEWEST_PIXELS = 1024, 16
# Shares of a batch's range that may be the one of least error, in steps of 2^(1/4).
_SHARES = tuple(2 ** (-index / 4) for index in range(16))


def affine(
    minimum: jax.Array, maximum: jax.Array, bits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Turns ranges into the constants of their quantizer.

    Args:
      minimum: lower ends of the ranges, any shape, in units of what is quantized.
      maximum: upper ends, same shape.
      bits: bit-width k, int32, broadcastable to them.

    Returns:
      (scale, step, zero_point, n): scale in codes per unit, step in units per code; zero point and
      largest code, both integer-valued but of the ranges' dtype.
    """
    n = (jnp.left_shift(1, bits) - 1).astype(minimum.dtype)
    width = jnp.maximum(maximum - minimum, _SMALLEST_WIDTH)
    scale = n / width
    return scale, width / n, jnp.round(scale * minimum), n


def encode(x: jax.Array, minimum: jax.Array, maximum: jax.Array, bits: jax.Array) -> jax.Array:
    """Returns the codes of x: integers in [0, 2^k - 1], in x's shape and dtype.

    Args:
      x: what to quantize, any shape.
      minimum, maximum: the range, broadcastable to x.
      bits: bit-width k, int32, broadcastable to x.
    """
    scale, _, zero_point, n = affine(minimum, maximum, bits)
    return jnp.clip(jnp.round(scale * x - zero_point), 0, n)


def decode(codes: jax.Array, minimum: jax.Array, maximum: jax.Array, bits: jax.Array) -> jax.Array:
    """Returns the values that codes stand for; the inverse of `encode` up to half a step."""
    # Not divided by the scale: XLA would rewrite that, in other ways in other programs, and an
    # exported kernel has to be the simulated one bit for bit.
    _, step, zero_point, _ = affine(minimum, maximum, bits)
    return (codes + zero_point) * step


@jax.custom_jvp
def fake_quantize(
    x: jax.Array, minimum: jax.Array, maximum: jax.Array, bits: jax.Array
) -> jax.Array:
    """Rounds x to its quantizer's levels, with a straight-through estimator as gradient.

    The gradient is exactly 1 for every x, clipped ones included, and none reaches the range
    (method of the GDFQ family; Bengio et al., 2013, for the estimator).

    Args:
      x: what to quantize, any shape.
      minimum, maximum: the range, broadcastable to x.
      bits: bit-width k, int32, broadcastable to x.

    Returns:
      x_hat, of x's shape and dtype, with at most 2^k distinct values per range.
    """
    return decode(encode(x, minimum, maximum, bits), minimum, maximum, bits)


@fake_quantize.defjvp
def _straight_through(primals, tangents):
    return fake_quantize(*primals), tangents[0]


@jax.custom_vjp
def fake_quantize_learned(
    x: jax.Array, minimum: jax.Array, maximum: jax.Array, bits: jax.Array
) -> jax.Array:
    """Rounds x to its quantizer's levels, with a gradient for the range.

    The values are those of `fake_quantize`. By x the gradient is 1 inside the range and 0 outside;
    by the end of the range that x lies beyond it is 1; by both ends, for x inside, it is what the
    straight-through estimator of the rounding alone leaves: +-(x_hat - x) / (maximum - minimum)
    (PACT, Choi et al., 2018; LSQ+, Bhalgat et al., CVPR Workshops 2020).

    Args:
      x: (..., channels).
      minimum, maximum: the range, scalars or (channels,).
      bits: bit-width k, an int32 scalar.

    Returns:
      x_hat, of x's shape and dtype.
    """
    return fake_quantize(x, minimum, maximum, bits)


def _learned_forward(x, minimum, maximum, bits):
    return fake_quantize(x, minimum, maximum, bits), (x, minimum, maximum, bits)


def _learned_backward(saved, cotangent):
    x, minimum, maximum, bits = saved
    x_hat = fake_quantize(x, minimum, maximum, bits)
    above, below = x > maximum, x < minimum
    rounding = (x_hat - x) * (1 / jnp.maximum(maximum - minimum, _SMALLEST_WIDTH))

    def to_end(gradient: jax.Array) -> jax.Array:
        # By channels first: XLA's CPU backend is slow where it sums a large array to one number.
        by_channel = (cotangent * gradient).sum(tuple(range(x.ndim - 1)))
        return by_channel.sum() if minimum.ndim == 0 else by_channel

    outside = above | below
    to_minimum = to_end(jnp.where(outside, below, -rounding))
    to_maximum = to_end(jnp.where(outside, above, rounding))
    return jnp.where(outside, 0, cotangent), to_minimum, to_maximum, None


fake_quantize_learned.defvjp(_learned_forward, _learned_backward)


def fake_quantize_weight(kernel: jax.Array, bits: jax.Array) -> jax.Array:
    """Fake-quantizes a kernel with one min-max range per output channel.

    Args:
      kernel: (..., out) weights of a convolution or dense layer.
      bits: bit-width k, an int32 scalar.

    Returns:
      The kernel's quantized values, same shape; straight-through gradient.
    """
    minimum, maximum = weight_range(kernel)
    return fake_quantize(kernel, minimum, maximum, bits)


def weight_range(kernel: jax.Array, bits: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the (minimum, maximum) of each output channel, the last axis; no gradient."""
    del bits
    axes = tuple(range(kernel.ndim - 1))
    kernel = jax.lax.stop_gradient(kernel)
    return kernel.min(axes), kernel.max(axes)


def update_range(
    average: jax.Array, value: jax.Array, updates: jax.Array, decay: float = RANGE_DECAY
) -> jax.Array:
    """Moves one end of a range towards a batch's extreme: a bias-corrected moving average.

    With m_0 = 0 and m_t = decay m_(t-1) + (1 - decay) value, the corrected average is
    m_t / (1 - decay^t). Written for the corrected average itself, it needs no second state and is
    corrected once, not over and over.

    Args:
      average: the corrected average after `updates` updates, scalar.
      value: this batch's minimum or maximum, scalar.
      updates: how many updates went before, int32 scalar.
      decay: weight of the past.

    Returns:
      The corrected average after one more update.
    """
    weight = (1 - decay) / (1 - decay ** (updates + 1).astype(average.dtype))
    return average + weight * (value - average)


def minmax_range(
    x: jax.Array, bits: jax.Array | None = None, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Returns the smallest and the largest of x, over a mapped axis where one is given."""
    del bits
    smallest, largest = x.min(), x.max()
    if axis_name is None:
        return smallest, largest
    return jax.lax.pmin(smallest, axis_name), jax.lax.pmax(largest, axis_name)


def least_error_range(
    x: jax.Array, bits: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Finds the range whose quantizer has the least error on x, to the fourth power.

    Not squared: errors of rounding are small, many and cancel out in the next layer; those of
    clipping are large, few and all of one sign, and a squared error thinks too little of them.
    Other norms than 2 are usual in post-training quantization (LAPQ, Nahshan et al., 2021).

    Looked for among the min-max range and that range shrunk, in 16 steps down to 0.07 of it: a
    wider range has longer steps, a narrower one clips more. The error is measured on some values of
    every image, the same ones in each, so that it does not depend on how images are spread.

    Args:
      x: (B, ..., channels), of at least two dimensions.
      bits: bit-width k, an int32 scalar.
      axis_name: mapped axis over which x is spread, if it is.

    Returns:
      (minimum, maximum), scalars.
    """
    smallest, largest = minmax_range(x, axis_name=axis_name)
    shares = jnp.array(_SHARES, x.dtype)
    x = _some_values(x)

    def error(share: jax.Array) -> jax.Array:
        difference = x - fake_quantize(x, share * smallest, share * largest, bits)
        return jnp.square(jnp.square(difference)).mean((0, 1)).mean()

    errors = jax.vmap(error)(shares)
    if axis_name is not None:
        errors = jax.lax.psum(errors, axis_name)
    share = shares[errors.argmin()]
    return share * smallest, share * largest


def _some_values(x: jax.Array) -> jax.Array:
    """Takes about a thousand values of each image, from (B, ..., channels): pixels all over it."""
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    _, pixels, channels = x.shape
    count = min(pixels, max(_LOOKED_AT // channels, _FEWEST_PIXELS))
    # By the golden ratio, so that they keep to no row or column.
    places = np.unique((np.arange(count) * 0.6180339887 % 1 * pixels).astype(int))
    return x[:, places, :: -(-len(places) * channels // _LOOKED_AT)]


def least_error_weight_range(kernel: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds each output channel's range of least squared error.

    Looked for as in `least_error_range`, but shrunk towards the channel's mean.

    Args:
      kernel: (..., out).
      bits: bit-width k, an int32 scalar.

    Returns:
      (minimum, maximum), (out,) each.
    """
    axes = tuple(range(kernel.ndim - 1))
    mean = kernel.mean(axes)
    ends = [mean + np.array(_SHARES)[:, None] * (end - mean) for end in weight_range(kernel)]

    def error(minimum: jax.Array, maximum: jax.Array) -> jax.Array:
        return jnp.square(kernel - fake_quantize(kernel, minimum, maximum, bits)).mean(axes)

    best = jax.vmap(error)(*ends).argmin(0)
    channels = jnp.arange(kernel.shape[-1])
    return tuple(end[best, channels].astype(kernel.dtype) for end in ends)


# By the name that configurations know: how calibration finds the range of a batch's activations,
# and where the ranges of kernels start that are learned.
RANGE_RULES = {"minmax": minmax_range, "least_error": least_error_range}
WEIGHT_RANGE_RULES = {"minmax": weight_range, "least_error": least_error_weight_range}
