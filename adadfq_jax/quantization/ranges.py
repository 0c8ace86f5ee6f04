"""Ranges of quantizers, and the rules by which calibration finds them."""

import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.quantization.codes import fake_quantize

RANGE_DECAY = 0.9

# Values of each image on which the error of a range is measured, and the fewest pixels they span.
_LOOKED_AT, _FEWEST_PIXELS = 1024, 16

# The candidates for the range of least error, as shares of a batch's range, a factor 2^(1/4) apart.
_SHARES = tuple(2 ** (-index / 4) for index in range(16))


def weight_range(kernel: jax.Array, bits: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns the (minimum, maximum) of each output channel, the last axis; no gradient."""
    del bits
    axes = tuple(range(kernel.ndim - 1))
    kernel = jax.lax.stop_gradient(kernel)
    return kernel.min(axes), kernel.max(axes)


def symmetric_range(
    minimum: jax.Array, maximum: jax.Array, bits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Widens ranges to ones whose zero point is -2^(k-1): codes are signed integers times a step.

    The step is the smallest with which the codes from -(2^(k-1) - 1) to 2^(k-1) - 1 span the range.
    The code -2^(k-1) is left to what lies below it, because a BatchNorm of negative scale, folded
    into the layer, turns the signs around, and INT8 has no 128.

    Args:
      minimum: lower ends, (out,).
      maximum: upper ends, (out,).
      bits: bit-width k of 2 or more, an int32 scalar.

    Returns:
      (minimum, maximum), (out,) each; their gradient goes to the end that decides.
    """
    below = jnp.left_shift(1, bits - 1).astype(minimum.dtype)
    step = jnp.maximum(-minimum, maximum) / (below - 1)
    return -below * step, (below - 1) * step


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
    """Returns (minimum, maximum) of x, two scalars, taken over a mapped axis where one is given."""
    del bits
    smallest, largest = x.min(), x.max()
    if axis_name is None:
        return smallest, largest
    return jax.lax.pmin(smallest, axis_name), jax.lax.pmax(largest, axis_name)


def least_error_range(
    x: jax.Array, bits: jax.Array, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """Finds the range that minimises the mean fourth power of the quantizer's error on x.

    The power is 4 and not 2 because of how errors reach the next layer. Rounding errors are many
    and small, and cancel out there; clipping errors are few, large and all of one sign, and a
    squared error gives them too little weight. Other norms than 2 are usual in post-training
    quantization (LAPQ, Nahshan et al., 2021).

    There are 16 candidates: the min-max range, and that range shrunk, down to 0.07 of its width. A
    wider range has longer steps, a narrower one clips more. The error is measured at the same
    positions of every image, so that it does not depend on how a batch is spread over devices.

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
    """Takes about a thousand values of each image, at pixels all over it.

    Args:
      x: (B, ..., channels).

    Returns:
      (B, pixels, channels): some pixels and channels of x.
    """
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    _, pixels, channels = x.shape
    count = min(pixels, max(_LOOKED_AT // channels, _FEWEST_PIXELS))
    # Multiples of the golden ratio, so that the pixels do not line up in a row or a column.
    places = np.unique((np.arange(count) * 0.6180339887 % 1 * pixels).astype(int))
    return x[:, places, :: -(-len(places) * channels // _LOOKED_AT)]


def least_error_weight_range(kernel: jax.Array, bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds each output channel's range of least squared error.

    The candidates are those of `least_error_range`, but shrunk towards the channel's mean.

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


# By their names in `quant.ranges`: how calibration finds the range of a batch's activations, and
# where learned ranges of kernels start.
RANGE_RULES = {"minmax": minmax_range, "least_error": least_error_range}

WEIGHT_RANGE_RULES = {"minmax": weight_range, "least_error": least_error_weight_range}
