"""How far a network's answers move where one kernel or one activation alone is quantized.

A distance is the mean squared distance of the logits from the teacher's, as a share of the variance
of the teacher's logits. Errors of several layers that have nothing to do with each other add up in
a squared distance, and on the networks tried here it told more of the whole than the divergence of
the softmax (README).

Nothing else is quantized, and no range is kept: each follows from the kernel, or from the batch of
images, with the least quantization error. Which layer, and how many bits, are arguments of one
compiled program.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.allocation.cost import ACTIVATION, WEIGHT, Item
from adadfq_jax.models.layers import ActivationLayer
from adadfq_jax.models.network import Network
from adadfq_jax.quantization import ranges
from adadfq_jax.quantization.codes import fake_quantize

# Pixels of a batch: small enough for the memory of large networks, large enough for ranges.
_MOST_PIXELS = 2**20
_MOST_IMAGES = 256
_NONE = -1


def batches_of(images: np.ndarray) -> list[np.ndarray]:
    """Returns images (N, H, W, channels) in batches of like sizes that fit into memory."""
    most = min(max(_MOST_PIXELS // (images.shape[1] * images.shape[2]), 1), _MOST_IMAGES)
    return np.array_split(images, -(-len(images) // most))


def measure_sensitivity(
    network: Network,
    items: Sequence[Item],
    choices: Sequence[int],
    allowed: np.ndarray,
    batches: Sequence[np.ndarray],
    say: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Measures the distance of the logits for each item at each bit-width.

    Args:
      network: in full precision.
      items: what is quantized, one at a time.
      choices: bit-widths.
      allowed: (items, choices), which are measured; the others are infinite in the result.
      batches: images, normalised, (B, H, W, channels) each; batches of one size compile once.
      say: called with the number of items that are done.

    Returns:
      (items, choices), distances.
    """
    variables = network.on_device
    flat = flax.traverse_util.flatten_dict(variables)
    activations = tuple(item.layer for item in items if item.kind == ACTIVATION)
    logits = functools.partial(_logits, network.module, activations)
    images = [jnp.asarray(batch) for batch in batches]
    expected = [logits(variables, batch, _NONE, 0) for batch in images]
    shares = np.array([len(batch) for batch in batches]) / sum(map(len, batches))
    whole = np.dot(shares, jax.device_get(list(map(spread, expected))))
    found = np.full(allowed.shape, np.inf)
    for index, item in enumerate(items):
        for choice in np.flatnonzero(allowed[index]):
            bits = choices[choice]
            given, chosen = variables, _NONE
            if item.kind == WEIGHT:
                path = ("params", *item.layer.split("/"), "kernel")
                given = flax.traverse_util.unflatten_dict(
                    flat | {path: _quantized_kernel(flat[path], bits)}
                )
            else:
                chosen = activations.index(item.layer)
            moved = [
                squared_error(logits(given, batch, chosen, bits), right)
                for batch, right in zip(images, expected, strict=True)
            ]
            found[index, choice] = np.dot(shares, jax.device_get(moved)) / whole
        say(index + 1)
    return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(
    module: nn.Module,
    activations: tuple[str, ...],
    variables: Any,
    images: jax.Array,
    chosen: int,
    bits: int,
) -> jax.Array:
    """Returns the logits where the activation of index `chosen` is quantized, if it is not -1."""

    def quantize(x: jax.Array) -> jax.Array:
        return fake_quantize(x, *ranges.least_error_range(x, bits), bits)

    def look(layer: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        y, name = layer(*args, **kwargs), "/".join(context.module.path)
        if (
            not isinstance(context.module, ActivationLayer)
            or context.method_name != "__call__"
            or name not in activations
        ):
            return y
        return jax.lax.cond(chosen == activations.index(name), quantize, lambda x: x, y)

    with nn.intercept_methods(look):
        return module.apply(variables, images)


@jax.jit
def _quantized_kernel(kernel: jax.Array, bits: int) -> jax.Array:
    return fake_quantize(kernel, *ranges.least_error_weight_range(kernel, bits), bits)


@jax.jit
def squared_error(logits: jax.Array, expected: jax.Array) -> jax.Array:
    """Returns the mean squared distance of logits from the teacher's, (B, classes) each."""
    return jnp.square(logits - expected).mean()


@jax.jit
def spread(expected: jax.Array) -> jax.Array:
    """Returns the variance of the teacher's logits over the classes, a mean over the images."""
    return expected.var(-1).mean()
