"""The sum of both players' gradients over the devices; no other place sums them."""

from collections.abc import Mapping
from typing import Any

import jax


def sum_gradients(
    gradients: dict[str, Any], factors: Mapping[str, tuple[jax.Array, jax.Array]], axis_name: str
) -> dict[str, Any]:
    """Sums the gradients of the devices' slices of a batch; each device gets the whole batch's.

    Args:
      gradients: gradient of this device's slice, by parameter.
      factors: for dense kernels (in, out), by name: the layer's input (B / devices, in) and the
        cotangent of its output (B / devices, out). Their product is the kernel's gradient.
      axis_name: mapped axis over which the batch is spread.

    Returns:
      The gradient of the whole batch, by parameter.
    """
    rest = {name: below for name, below in gradients.items() if name not in factors}
    products = {name: _summed_product(*pair, axis_name) for name, pair in factors.items()}
    return products | jax.lax.psum(rest, axis_name)


def _summed_product(inputs: jax.Array, cotangent: jax.Array, axis_name: str) -> jax.Array:
    """Returns the sum over the devices of inputs^T cotangent.

    Gathering the factors moves one row per image of the batch; summing the products moves each row
    of the kernel twice. The way that moves fewer rows is taken. For the generator's first layer at
    224 pixels the sum would be three quarters of all that the players' gradients move.
    """
    rows = len(inputs) * jax.lax.axis_size(axis_name)
    if rows > 2 * inputs.shape[1]:
        return jax.lax.psum(inputs.T @ cotangent, axis_name)
    inputs, cotangent = jax.lax.all_gather((inputs, cotangent), axis_name, tiled=True)
    return inputs.T @ cotangent
