"""Mean and variance of a BatchNorm's input, with a gradient of one pass over it."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def batch_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance of each channel over this device's share of the batch.

    Args:
      x: (..., channels).

    Returns:
      (mean, variance), each (channels,), in float32 at least.
    """
    x = _at_least_float32(x)
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    # Two passes: E[x^2] - E[x]^2 would cancel in float32.
    return mean, jnp.square(x - mean).mean(axes)


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
