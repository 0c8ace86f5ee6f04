"""What the bits of each layer cost: elements, bit operations; and which layers can share bits.

A bit operation is a multiplication of one bit by one bit, so that a layer of M multiplications
takes M x (bits of its kernel) x (bits of what it reads) (HAWQ-V3, Yao et al., ICML 2021). Images
count 8 bits, and whatever else is not quantized, such as a pooled average, 32.
"""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.models.graph import INPUT, Node
from adadfq_jax.models.operations import OPERATIONS, PASSES_CODES
from adadfq_jax.models.size import measure_layers
from adadfq_jax.models.tracing import trace

WEIGHT, ACTIVATION = "weight", "activation"
_IMAGE_BITS, _FLOAT_BITS = 8, 32


@dataclasses.dataclass(frozen=True)
class Item:
    """What gets bits of its own: the kernel of a layer, or an activation.

    Attributes:
      layer: name of the layer, such as `stage1_block1/conv1`.
      kind: `weight` or `activation`.
      elements: weights of the kernel, or values of the activation for one image.
    """

    layer: str
    kind: str
    elements: int


@dataclasses.dataclass(frozen=True)
class Product:
    """The multiplications of a layer.

    Attributes:
      layer: name of the layer.
      macs: how many one image takes.
      source: name of the quantized activation that it reads; None where it reads another thing.
      bits: bits of what it reads, where that is no quantized activation.
    """

    layer: str
    macs: int
    source: str | None
    bits: int


@dataclasses.dataclass(frozen=True)
class Costs:
    """What gets bits in a network, in the order of its layers, and what it costs.

    Attributes:
      items: kernels and activations.
      products: multiplications of each layer.
      nodes: the network's operations, of which `shared` reads who must share bits.
    """

    items: tuple[Item, ...]
    products: tuple[Product, ...]
    nodes: tuple[Node, ...]

    def of(self, kinds: Sequence[str]) -> tuple[Item, ...]:
        """Returns the items of some kinds."""
        return tuple(item for item in self.items if item.kind in kinds)

    def bit_operations(self, bits: dict[tuple[str, str], int]) -> int:
        """Returns the bit operations of one image.

        Args:
          bits: bit-widths by (layer, kind).
        """
        return sum(
            product.macs
            * bits[product.layer, WEIGHT]
            * (product.bits if product.source is None else bits[product.source, ACTIVATION])
            for product in self.products
        )

    def shared(self, rules: Sequence[str]) -> list[list[tuple[str, str]]]:
        """Returns the groups of (layer, kind) that must share bits by some rules.

        Args:
          rules: names in `SHARING`.

        Raises:
          ConfigError: there is no such rule.
        """
        found = []
        for rule in rules:
            if rule not in SHARING:
                raise ConfigError(f"there are no groups {rule!r}: {nearest(rule, SHARING)}")
            found += SHARING[rule](self.nodes)
        return found


def costs_of(module: nn.Module, image_size: int) -> Costs:
    """Returns what gets bits in a classifier and what it costs, without running it.

    Args:
      module: the classifier.
      image_size: side of its images in pixels.
    """
    nodes = trace(module, image_size)
    by_name = {node.name: node for node in nodes}
    sizes = measure_layers(module, image_size)
    items, products = [], []
    for node in nodes:
        if node.op in ("conv", "dense"):
            items.append(Item(node.name, WEIGHT, sizes.elements[node.name]))
            source = _behind(node.inputs[0], by_name, PASSES_CODES)
            quantized = source in by_name and OPERATIONS[by_name[source].op].activation
            other = _IMAGE_BITS if source == INPUT else _FLOAT_BITS
            products.append(
                Product(node.name, sizes.macs[node.name], source if quantized else None, other)
            )
        elif OPERATIONS[node.op].activation:
            items.append(Item(node.name, ACTIVATION, sizes.elements[node.name]))
    return Costs(tuple(items), tuple(products), nodes)


def _behind(name: str, by_name: dict[str, Node], passed: Sequence[str]) -> str:
    """Returns the node that a value comes from, behind operations that only pass it on."""
    while name in by_name and by_name[name].op in passed:
        name = by_name[name].inputs[0]
    return name


def _inputs_of_sums(nodes: Sequence[Node]) -> list[list[tuple[str, str]]]:
    """The quantized inputs of each addition, which an engine in integers adds at one scale."""
    by_name, groups = {node.name: node for node in nodes}, []
    for node in nodes:
        if node.op == "add":
            # Channels of zeros may be added in between, and 0 is a level.
            sources = [
                _behind(name, by_name, (*PASSES_CODES, "pad_channels")) for name in node.inputs
            ]
            group = [
                (source, ACTIVATION)
                for source in dict.fromkeys(sources)
                if source in by_name and OPERATIONS[by_name[source].op].activation
            ]
            groups += [group] if len(group) > 1 else []
    return groups


def _depthwise_and_before(nodes: Sequence[Node]) -> list[list[tuple[str, str]]]:
    """Each depthwise convolution with the convolution before it."""
    by_name, groups = {node.name: node for node in nodes}, []
    passed = [op for op, what in OPERATIONS.items() if what.activation] + ["norm"]
    for node in nodes:
        if node.op == "conv" and node.attributes["groups"] > 1:
            before = _behind(node.inputs[0], by_name, passed)
            if (
                before in by_name
                and by_name[before].op == "conv"
                and by_name[before].attributes["features"] == node.attributes["groups"]
            ):
                groups.append([(before, WEIGHT), (node.name, WEIGHT)])
    return groups


# By name, what the option `groups` can ask for.
SHARING: dict[str, Callable[[Sequence[Node]], list[list[tuple[str, str]]]]] = {
    "sums": _inputs_of_sums,
    "depthwise": _depthwise_and_before,
}
