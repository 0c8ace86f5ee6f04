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
