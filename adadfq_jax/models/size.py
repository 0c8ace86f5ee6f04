"""The size of a network: parameters, layers and multiplications."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from adadfq_jax.models.layers import QuantConv, QuantDense, both, input_shape


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a network and the cost of one image.

    Attributes:
      parameters: trained numbers: kernels, biases, BatchNorm scales and biases.
      layers: convolutions and dense layers, shortcuts included.
      macs: multiply-accumulate operations of those layers for one image.
    """

    parameters: int
    layers: int
    macs: int


def measure_network(module: nn.Module, image_size: int) -> Size:
    """Counts a classifier's parameters, layers and multiplications, without running it.

    Args:
      module: the classifier.
      image_size: side of its images in pixels.
    """
    counted = []

    def count(call, args, kwargs, context):
        result = call(*args, **kwargs)
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, QuantConv | QuantDense):
            # Every output element is one sum over this many inputs.
            inputs = args[0].shape[-1]
            if isinstance(layer, QuantConv):
                inputs = math.prod(both(layer.kernel_size)) * inputs // layer.groups
            counted.append(math.prod(result.shape[1:]) * inputs)
        return result

    with nn.intercept_methods(count):
        variables = jax.eval_shape(
            module.init, jax.random.key(0), jnp.zeros((1, *input_shape(module, image_size)))
        )
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return Size(parameters, len(counted), sum(counted))
