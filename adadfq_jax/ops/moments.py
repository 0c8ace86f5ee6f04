"""BatchNorms: the moments of their input, and their scale and shift, in few passes over it."""

import jax
import jax.numpy as jnp
import numpy as np


@jax.custom_vjp
def batch_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance of each channel over this device's share of the batch.

    Args:
      x: (..., channels).

    Returns:
      (mean, variance), each (channels,), in float32 at least.
    """
    x = _at_least_float32(x)
    return jax.lax.platform_dependent(x, cpu=_two_passes, default=_one_pass)


def _two_passes(x):
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    # Two passes: E[x^2] - E[x]^2 would cancel in float32.
    return mean, jnp.square(x - mean).mean(axes)


def _one_pass(x):
    """The same in one pass, which is one kernel of a GPU where two passes are two.

    The sums are of differences to one value of each channel, so that E[x^2] - E[x]^2 does not
    cancel (Chan, Golub & LeVeque, The American Statistician 37, 1983).
    """
    origin = x[(0,) * (x.ndim - 1)]
    squares, sums = _sums_at_once(x - origin, x - origin)
    count = x.size // x.shape[-1]
    mean = sums / count
    return origin + mean, jnp.maximum(squares / count - jnp.square(mean), 0)


def _moments_forward(x):
    mean, variance = batch_moments(x)
    return (mean, variance), (x, mean)


def _moments_backward(saved, cotangents):
    # The variance depends on the mean too, but by a sum over x - mean, which is 0. Leaving it out
    # saves a pass over x that XLA would make.
    x, mean = saved
    to_mean, to_variance = cotangents
    count = x.size // x.shape[-1]
    return (((to_mean + 2 * to_variance * (x - mean)) / count).astype(x.dtype),)


batch_moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def scale_and_shift(x: jax.Array, factor: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns x factor + shift, by channels.

    Args:
      x: (..., channels).
      factor, shift: (channels,).
    """
    return x * factor + shift


def _scaled_forward(x, factor, shift):
    return scale_and_shift(x, factor, shift), (x, factor)


def _scaled_backward(saved, cotangent):
    x, factor = saved
    to_factor, to_shift = jax.lax.platform_dependent(
        *(x, cotangent), cpu=_two_sums, default=_sums_at_once
    )
    return (cotangent * factor).astype(x.dtype), to_factor, to_shift


scale_and_shift.defvjp(_scaled_forward, _scaled_backward)


def _two_sums(x, cotangent):
    axes = tuple(range(x.ndim - 1))
    return (cotangent * x).sum(axes), cotangent.sum(axes)


def _sums_at_once(x, cotangent):
    """The same as one reduction, which is one kernel of a GPU."""
    zero = np.zeros((), cotangent.dtype)
    axes = tuple(range(x.ndim - 1))
    return tuple(jax.lax.reduce((cotangent * x, cotangent), (zero, zero), _add_both, axes))


def _add_both(left, right):
    return left[0] + right[0], left[1] + right[1]


def global_average(x: jax.Array) -> jax.Array:
    """Averages (B, H, W, channels) over the pixels, to (B, channels) in float32 at least."""
    return _at_least_float32(x).mean((1, 2))


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def unite_moments(means: jax.Array, variances: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Turns the moments of equal shares of a batch into those of the whole.

    Args:
      means: (shares, channels).
      variances: biased, same shape.

    Returns:
      (mean, variance), each (channels,).
    """
    mean = means.mean(0)
    return mean, (variances + (means - mean) ** 2).mean(0)
