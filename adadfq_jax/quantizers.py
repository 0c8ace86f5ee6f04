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

MAX_BITS = 8
RANGE_DECAY = 0.9
_SMALLEST_WIDTH = 1e-8


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


def weight_range(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the (minimum, maximum) of each output channel, the last axis; no gradient."""
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
