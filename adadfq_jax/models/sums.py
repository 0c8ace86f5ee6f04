"""Quantizers of what residual sums and convolutions read, where the protocol has none.

The paper quantizes what follows an activation function. The second convolution of a residual block
ends in a sum, and a linear bottleneck in none, so that engines compute both in floating point; with
these quantizers every convolution but that of the images has integers on both sides.
"""

import dataclasses

import flax.linen as nn
from flax.core import FrozenDict

from adadfq_jax.models.graph import INPUT, GraphNetwork, Node
from adadfq_jax.models.layers import input_shape
from adadfq_jax.models.operations import OPERATIONS, PASSES_CODES
from adadfq_jax.models.registry import is_registered
from adadfq_jax.models.tracing import trace

QUANTIZER = "quantizer"
_SUFFIX = "_quantized"
_NAME_SUFFIX = ".sums"

# After these too a value is quantized: channels of zeros are added, and 0 is a level.
_TRANSPARENT = (*PASSES_CODES, "pad_channels")


def with_quantized_sums(module: nn.Module, image_size: int) -> GraphNetwork:
    """Returns a classifier whose student quantizes all that its sums and convolutions read.

    The new quantizers are activations like others: `assign_bits` gives them bits by their names
    (`*_quantized=a8`), calibration finds their ranges. In full precision they do nothing.

    Args:
      module: of `registry.build`, or a `GraphNetwork`.
      image_size: side of its images in pixels.
    """
    known: dict[str, Node] = {}
    quantized: dict[str, str] = {INPUT: INPUT}  # by the node that is read, its quantizer or itself
    nodes = []
    for node in trace(module, image_size):
        if node.op in ("add", "conv"):
            for name in node.inputs:
                if name not in quantized and not _is_quantized(known[name], known):
                    quantized[name] = name + _SUFFIX
                    nodes.append(Node(QUANTIZER, name + _SUFFIX, (name,), FrozenDict()))
            read = tuple(quantized.get(name, name) for name in node.inputs)
            node = dataclasses.replace(node, inputs=read)
        nodes.append(node)
        known[node.name] = node
    *_, channels = input_shape(module, image_size)
    return GraphNetwork(tuple(nodes), module.classes, channels)


def _is_quantized(node: Node, known: dict[str, Node]) -> bool:
    while node.op in _TRANSPARENT and node.inputs[0] in known:
        node = known[node.inputs[0]]
    return OPERATIONS[node.op].activation


def name_with_quantized_sums(architecture: str) -> str:
    """Returns a name for such a network, by which files know that their nodes define it."""
    return architecture + _NAME_SUFFIX if is_registered(architecture) else architecture
