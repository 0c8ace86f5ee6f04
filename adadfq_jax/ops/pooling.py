"""The ResNets' average-pool, and their max-pool with a gradient that is fast on CPU too.

For the gradient of a max-pool, XLA's CPU backend finds the largest pixel of each window with four
index numbers per pixel, and scatters pixel by pixel. That takes a tenth of a step for ResNet-18 at
224 pixels. All arrays are (B, H, W, channels).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_SIDE, _STRIDE, _PADDING = 3, 2, 1


def average_pool(x: jax.Array) -> jax.Array:
    """Averages blocks of 2x2 pixels.

    Args:
      x: (B, H, W, channels), H and W even.

    Returns:
      (B, H / 2, W / 2, channels).
    """
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, window, "VALID") / 4


@jax.custom_vjp
def max_pool_3x3(x: jax.Array) -> jax.Array:
    """Takes the maximum of 3x3 windows, two pixels apart; the padding of one pixel never wins.

    Args:
      x: (B, H, W, channels).

    Returns:
      (B, ceil(H / 2), ceil(W / 2), channels). The gradient goes to a window's first maximum.
    """
    return _plain(x)


def _forward(x):
    return max_pool_3x3(x), x


def _backward(x, cotangent):
    return jax.lax.platform_dependent(x, cotangent, cpu=_by_taps, default=_through_plain)


max_pool_3x3.defvjp(_forward, _backward)


def _plain(x: jax.Array) -> jax.Array:
    padding = ((_PADDING, _PADDING),) * 2
    return nn.max_pool(x, (_SIDE, _SIDE), strides=(_STRIDE, _STRIDE), padding=padding)


def _through_plain(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    return jax.vjp(_plain, x)[1](cotangent)


def _by_taps(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    # Taps are compared with each other and not with the maximum of the forward pass: a compiler may
    # compute x again with other rounding, and then no tap would equal that maximum.
    first, *others = _taps(x)
    largest, where = first, jnp.zeros(first.shape, jnp.int32)
    for number, tap in enumerate(others, 1):
        larger = tap > largest
        largest, where = jnp.where(larger, tap, largest), jnp.where(larger, number, where)
    shares = [jnp.where(where == number, cotangent, 0) for number in range(_SIDE**2)]
    return jax.linear_transpose(_taps, x)(shares)


def _taps(x: jax.Array) -> list[jax.Array]:
    """Returns nine arrays: the first pixel of every window, the second, and so on, row by row."""
    padding = ((0, 0), *((_PADDING, _PADDING),) * 2, (0, 0))
    padded = jnp.pad(x, padding, constant_values=-jnp.inf)
    rows, columns = (side - _SIDE + 1 for side in padded.shape[1:3])
    return [
        padded[:, row : row + rows : _STRIDE, column : column + columns : _STRIDE]
        for row in range(_SIDE)
        for column in range(_SIDE)
    ]
