"""A classifier as a list of nodes, each one operation on the results of earlier ones.

Every exported format is written from that list, and `GraphNetwork` computes it: a network that no
module of this package defines is one. The hand-written modules are read by `tracing.py`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from adadfq_jax.errors import AdaDFQError, ConfigError, nearest
from adadfq_jax.models.layers import COLOURS, Calibration, FrozenBatchNorm, input_shape
from adadfq_jax.models.operations import OPERATIONS

INPUT = "image"

# Of what one node makes of one image, and of its sides: more is a mistake, or malice, of a file.
_MOST_NUMBERS, _LONGEST_SIDE = 2**28, 4096
_MOST_NODES = 10_000
_NAME = re.compile(r"[\w\-]+(?:[./][\w\-]+)*", re.ASCII)
_LONGEST_NAME = 200
# Layers with weights between two places where activations are kept, if the others are made again.
_KEPT_EVERY = 2


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
      op: of `operations.OPERATIONS`.
      name: the layer's, such as `stage1_block1/conv1`; for what is no layer, any other.
      inputs: names of the nodes that it reads, or `INPUT`.
      attributes: what else defines it; hashable, and as JSON would hold it but for tuples.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    attributes: FrozenDict[str, Any]


def is_network_name(name: str) -> bool:
    """Tells whether a network that only its nodes define may be called so."""
    return re.fullmatch(r"[\w\-.]{1,60}", name, re.ASCII) is not None


def to_json(nodes: Iterable[Node]) -> list[list[Any]]:
    """Returns nodes as JSON holds them: [op, name, inputs, attributes] of each."""
    return [[node.op, node.name, list(node.inputs), dict(node.attributes)] for node in nodes]


def from_json(written: Any) -> tuple[Node, ...]:
    """Reads what `to_json` wrote, from a file that nobody vouches for.

    Raises:
      ConfigError: it is no list of nodes, a node is not known, or reads what does not go before it,
        or its attributes cannot be.
    """
    if not isinstance(written, list) or not 1 <= len(written) <= _MOST_NODES:
        raise ConfigError(f"a graph must be a list of 1 to {_MOST_NODES:,} nodes.")
    nodes: list[Node] = []
    known = {INPUT}
    for entry in written:
        nodes.append(_node(entry, known))
        known.add(nodes[-1].name)
    layers = {node.name for node in nodes if OPERATIONS[node.op].layer is not None}
    for name in layers:
        parts = name.split("/")
        for end in range(1, len(parts)):
            if (outer := "/".join(parts[:end])) in layers:
                raise ConfigError(f"a layer {name!r} cannot lie in another layer, {outer!r}.")
    return tuple(nodes)


def _node(entry: Any, known: set[str]) -> Node:
    """Reads one node that follows those whose names are known."""
    if not isinstance(entry, list) or [type(part) for part in entry] != [str, str, list, dict]:
        raise ConfigError(f"a node must be [op, name, inputs, attributes], not {entry!r:.80}.")
    op, name, inputs, attributes = entry
    if op not in OPERATIONS:
        raise ConfigError(f"an operation {op!r:.40} is not known: {nearest(op, OPERATIONS)}")
    if name in known:
        whose = "the network's input" if name == INPUT else "a node before it"
        raise ConfigError(f"{name!r} cannot be a node's name: {whose} has it.")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"{name!r:.80} cannot be a node's name: at most {_LONGEST_NAME} letters, digits, '_', "
            "'-' and '.' are."
        )
    operation = OPERATIONS[op]
    if operation.inputs not in (None, len(inputs)) or not inputs:
        raise ConfigError(f"{name!r} ({op}) reads {len(inputs)} nodes, not {operation.inputs}.")
    for read in inputs:
        if not isinstance(read, str) or read not in known:
            raise ConfigError(f"{name!r} reads {read!r:.80}, which is no node before it.")
    settings = FrozenDict({key: _immutable(value) for key, value in attributes.items()})
    if settings.keys() != operation.attributes.keys():
        raise ConfigError(
            f"{name!r} ({op}) has the attributes {', '.join(settings) or 'none'}, not "
            f"{', '.join(operation.attributes) or 'none'}."
        )
    for key, holds in operation.attributes.items():
        if not holds(settings[key]):
            raise ConfigError(f"{name!r} ({op}) cannot have {key}={attributes[key]!r:.80}.")
    return Node(op, name, tuple(inputs), settings)


def _immutable(value: Any) -> Any:
    return tuple(map(_immutable, value)) if isinstance(value, list | tuple) else value


class _Scope(nn.Module):
    """What has the layers `stage1_block1/conv1` and `stage1_block1/norm1` in it."""

    @nn.compact
    def __call__(self, layer: nn.Module, x: jax.Array) -> jax.Array:
        return layer.clone(parent=self)(x)


class GraphNetwork(nn.Module):
    """A classifier that computes a list of nodes, with the layers of teacher and student.

    Its variables have the names of its layers, as those of a module with the same layers have.

    Attributes:
      nodes: in an order in which they can be computed; the last one makes the logits.
      classes: number of classes C.
      channels: of the images.
      norm: constructor of the normalisation (`flax.linen.BatchNorm` to train a teacher).
      calibration: how activation ranges follow a batch.
      remat: whether to keep only some activations, from one place where a single value is passed
        on to the next, and to make the others again for the backward pass.
    """

    nodes: tuple[Node, ...]
    classes: int
    channels: int = COLOURS
    norm: Callable[..., nn.Module] = FrozenBatchNorm
    calibration: Calibration = Calibration()
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps normalised images (B, H, W, channels) to logits (B, classes)."""
        compute = GraphNetwork._compute
        segments: Sequence[tuple[int, int, str]] = [(0, len(self.nodes), INPUT)]
        if self.remat:
            compute = nn.remat(compute, static_argnums=(2, 3, 4))
            segments = _segments(self.nodes)
        for start, stop, passed_on in segments:
            wanted = self.nodes[-1].name
            if stop < len(self.nodes):
                wanted = next(name for first, _, name in segments if first == stop)
            x = compute(self, x, passed_on, wanted, (start, stop))
        if x.shape[1:] != (self.classes,):
            raise ConfigError(f"a graph of {self.classes} classes ends in the shape {x.shape[1:]}.")
        return x

    def _compute(self, x: jax.Array, name: str, wanted: str, part: tuple[int, int]) -> jax.Array:
        """Computes some of the nodes, of which the first read the value of a name alone."""
        values, scopes = {name: x}, {}
        for node in self.nodes[slice(*part)]:
            inputs = [values[read] for read in node.inputs]
            operation = OPERATIONS[node.op]
            if operation.layer is None:
                value = operation.compute(node.attributes, *inputs)
            else:
                make = operation.layer(node.attributes, self.norm, self.calibration)
                value = self._apply(scopes, make, node.name, *inputs)
            _require_memory(node.name, value.shape[1:])
            values[node.name] = value
        return values[wanted]

    def _apply(self, scopes: dict, make: Callable, name: str, x: jax.Array) -> jax.Array:
        """Applies a layer, in the scopes that its name says."""
        *outer, last = name.split("/")
        layer, scope, path = make(last), self, ""
        for part in outer:
            path += f"/{part}"
            if path not in scopes:
                scopes[path] = _Scope(name=part, parent=scope)
            scope = scopes[path]
        return layer.clone(parent=self)(x) if scope is self else scope(layer, x)


def _require_memory(name: str, shape: tuple[int, ...]) -> None:
    """Raises ConfigError where a value of one image is larger than images and features are."""
    if math.prod(shape) > _MOST_NUMBERS or max(shape[:-1], default=0) > _LONGEST_SIDE:
        raise ConfigError(f"a graph's {name!r} has the shape {shape}, which is too large.")


def _segments(nodes: Sequence[Node]) -> list[tuple[int, int, str]]:
    """Divides nodes where one value alone is read later: (start, stop, name of what they read)."""
    last_read = {name: index for index, node in enumerate(nodes) for name in node.inputs}
    live, segments, start, passed_on, weights = {INPUT}, [], 0, INPUT, 0
    for index, node in enumerate(nodes[:-1]):
        live = {name for name in live | {node.name} if last_read.get(name, -1) > index}
        weights += node.op in ("conv", "dense")
        if len(live) == 1 and weights >= _KEPT_EVERY:
            segments.append((start, index + 1, passed_on))
            start, (passed_on,), weights = index + 1, live, 0
    return [*segments, (start, len(nodes), passed_on)]


def value_shapes(nodes: Iterable[Node], image: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every node's value for one image, by name; computes nothing.

    Args:
      nodes: the operations.
      image: the image's shape, (H, W, channels).
    """
    values = {INPUT: jax.ShapeDtypeStruct((1, *image), jnp.float32)}
    for node in nodes:
        inputs = [values[name] for name in node.inputs]
        operation = OPERATIONS[node.op]
        if operation.layer is None:
            compute = functools.partial(operation.compute, node.attributes)
        else:
            layer = operation.layer(node.attributes, FrozenBatchNorm, Calibration())("layer")
            compute = functools.partial(_initial_value, layer)
        values[node.name] = jax.eval_shape(compute, *inputs)
    return {name: value.shape[1:] for name, value in values.items()}


def _initial_value(layer: nn.Module, x: jax.Array) -> jax.Array:
    return layer.init_with_output(jax.random.key(0), x)[0]


@functools.lru_cache(maxsize=8)
def _checked(nodes: tuple[Node, ...], classes: int, image_size: int, channels: int) -> GraphNetwork:
    network = GraphNetwork(nodes, classes, channels)
    images = jnp.zeros((1, *input_shape(network, image_size)))
    try:
        jax.eval_shape(network.init, jax.random.key(0), images)
    except AdaDFQError:
        raise
    except Exception as error:  # JAX and Flax raise many kinds for shapes that do not fit
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ConfigError(f"a graph that cannot be computed: {reason}.") from error
    return network


def checked_network(
    written: Any, classes: int, image_size: int, channels: int = COLOURS
) -> GraphNetwork:
    """Makes a network of nodes from a file that nobody vouches for.

    Args:
      written: what `to_json` wrote.
      classes: number of classes C.
      image_size: side of its images in pixels.
      channels: of its images.

    Raises:
      ConfigError: as `from_json`; or the nodes cannot be computed, or not in reasonable memory.
    """
    return _checked(from_json(written), classes, image_size, channels)
