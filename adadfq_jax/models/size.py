"""The size of a network: parameters, layers, multiplications, bytes of packed codes."""

import dataclasses
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.models.layers import ActivationLayer, QuantConv, QuantDense, both, input_shape


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


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """The sizes of a network's layers, by name.

    Attributes:
      parameters: trained numbers of all of them, as in `Size`.
      elements: weights of each kernel, and values of each activation for one image.
      macs: multiply-accumulate operations of each convolution and dense layer for one image.
    """

    parameters: int
    elements: dict[str, int]
    macs: dict[str, int]


def measure_layers(module: nn.Module, image_size: int) -> LayerSizes:
    """Counts the elements and the multiplications of a classifier's layers, without running it.

    Args:
      module: the classifier.
      image_size: side of its images in pixels.
    """
    elements: dict[str, int] = {}
    macs: dict[str, int] = {}

    def count(call, args, kwargs, context):
        result = call(*args, **kwargs)
        layer = context.module
        if context.method_name != "__call__":
            return result
        name = "/".join(layer.path)
        if isinstance(layer, ActivationLayer):
            elements[name] = math.prod(result.shape[1:])
        elif isinstance(layer, QuantConv | QuantDense):
            # Every output element is one sum over this many inputs.
            inputs = args[0].shape[-1]
            if isinstance(layer, QuantConv):
                inputs = math.prod(both(layer.kernel_size)) * inputs // layer.groups
            elements[name] = inputs * layer.features
            macs[name] = inputs * math.prod(result.shape[1:])
        return result

    with nn.intercept_methods(count):
        variables = jax.eval_shape(
            module.init, jax.random.key(0), jnp.zeros((1, *input_shape(module, image_size)))
        )
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return LayerSizes(parameters, elements, macs)


def measure_network(module: nn.Module, image_size: int) -> Size:
    """Counts a classifier's parameters, layers and multiplications, without running it.

    Args:
      module: the classifier.
      image_size: side of its images in pixels.
    """
    sizes = measure_layers(module, image_size)
    return Size(sizes.parameters, len(sizes.macs), sum(sizes.macs.values()))


def codes_bytes(count: int, bits: int) -> int:
    """Returns the bytes of so many packed codes of some bits."""
    return -(-count * bits // 8)


def packed_bytes(arrays: Mapping[str, np.ndarray], bits: Mapping[str, int] | None = None) -> int:
    """Returns the bytes of a network's numbers, packed as the export format `integers` packs them.

    A quantized kernel takes its bits for each weight, and a scale and a zero point in 32 bits for
    each output channel; everything else takes 32 bits. What a file says of itself comes on top.

    Args:
      arrays: the variables, as `network.flatten` returns them.
      bits: bit-widths by variable, such as `bits/stem_conv/weight`; None for those in `arrays`.
    """
    bits = arrays if bits is None else bits
    total = 0
    for name, array in arrays.items():
        collection, _, rest = name.partition("/")
        layer, _, kind = rest.rpartition("/")
        if collection in ("params", "batch_stats"):
            size = math.prod(np.shape(array))
            width = bits.get(f"bits/{layer}/weight") if kind == "kernel" else None
            total += (
                4 * size if width is None else codes_bytes(size, int(width)) + 8 * array.shape[-1]
            )
    return total + 8 * sum(name.endswith("/activation") for name in bits)
