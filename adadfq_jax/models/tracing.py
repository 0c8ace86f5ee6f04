"""A hand-written module read as the list of nodes that it computes.

The layers of `layers` become one node each, by their names; what stands between them (additions,
shortcuts, pooling) is read from the traced program. A new module needs nothing here if it is made
of those layers, additions, pools, `global_average` and one dense layer at its end.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
from flax.core import FrozenDict

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.models.graph import INPUT, GraphNetwork, Node
from adadfq_jax.models.layers import (
    FrozenBatchNorm,
    QuantConv,
    QuantDense,
    QuantReLU,
    input_shape,
)
from adadfq_jax.models.operations import OPERATIONS
from adadfq_jax.quantization.bits import parse_override

_MARK = "adadfq_layer_"
# Only its axis is looked for in the traced shapes.
_BATCH = 2
_COUNT = "count"


def trace(module: nn.Module, image_size: int) -> tuple[Node, ...]:
    """Reads a classifier's operations, in an order in which they can be computed.

    Args:
      module: of `registry.build`, or a `GraphNetwork`.
      image_size: side of its images in pixels.

    Returns:
      The nodes; the last one makes the logits.

    Raises:
      NotImplementedError: the module does something between its layers that is not known here.
    """
    if isinstance(module, GraphNetwork):
        return module.nodes
    layers: list[tuple[str, str, dict[str, Any]]] = []
    images = jax.ShapeDtypeStruct((_BATCH, *input_shape(module, image_size)), jnp.float32)
    with nn.intercept_methods(functools.partial(_mark_layer, layers)):
        program = jax.make_jaxpr(lambda images: module.apply({}, images))(images)
    nodes: list[Node] = []
    (source,) = program.jaxpr.invars
    _walk(program.jaxpr, {source: INPUT}, layers, nodes)
    # Sums are counted while they wait for the division that makes them means.
    return tuple(
        Node(
            node.op,
            node.name,
            node.inputs,
            FrozenDict({name: value for name, value in node.attributes.items() if name != _COUNT}),
        )
        for node in nodes
    )


def _mark_layer(layers: list, layer: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Puts a call of a recognisable name in a layer's place; its variables are never asked for."""
    module = context.module
    if context.method_name != "__call__":
        return layer(*args, **kwargs)
    (x,) = args
    match module:
        case QuantConv():
            op = "conv"
            attributes = {"features": module.features, **module.geometry()}
            attributes |= {"groups": module.groups, "use_bias": module.use_bias}
            sides = (
                (side + sum(padding) - dilation * (size - 1) - 1) // stride + 1
                for side, size, stride, padding, dilation in zip(
                    x.shape[1:3], *module.geometry().values(), strict=True
                )
            )
            shape = (x.shape[0], *sides, module.features)
        case QuantDense():
            op, shape = "dense", (x.shape[0], module.features)
            attributes = {"features": module.features, "use_bias": module.use_bias}
        case FrozenBatchNorm():
            op, shape = "norm", x.shape
            attributes = {"epsilon": module.epsilon, "affine": module.use_scale}
        case QuantReLU():
            op, shape, attributes = "relu", x.shape, {"largest": module.largest}
        case _:
            return layer(*args, **kwargs)

    def mark(x):
        return jnp.zeros(shape, x.dtype) + x.sum()

    mark.__name__ = f"{_MARK}{len(layers)}"
    layers.append((op, "/".join(module.path), attributes))
    return jax.jit(mark)(x)


def _walk(jaxpr: Any, names: dict[Any, str], layers: list, nodes: list[Node]) -> None:
    """Appends the nodes of a program; `names` says which node makes which variable."""
    for equation in jaxpr.eqns:
        called = equation.params.get("name", "")
        inputs = tuple(
            names[variable]
            for variable in equation.invars
            if not isinstance(variable, jax.extend.core.Literal) and variable in names
        )
        if called.startswith(_MARK):
            op, name, attributes = layers[int(called.removeprefix(_MARK))]
            nodes.append(Node(op, name, inputs, attributes))
            names[equation.outvars[0]] = name
            continue
        # That of a function with a gradient of its own has another name.
        program = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if program is not None:
            inner = program.jaxpr
            inside = {
                variable: names[given]
                for variable, given in zip(inner.invars, equation.invars, strict=True)
                if not isinstance(given, jax.extend.core.Literal) and given in names
            }
            _walk(inner, inside, layers, nodes)
            names[equation.outvars[0]] = inside[inner.outvars[0]]
            continue
        if not inputs:  # constants
            continue
        found = _glue(equation, nodes)
        if found is None:  # changes nothing
            names[equation.outvars[0]] = inputs[0]
            continue
        op, attributes = found
        name = f"{op}_{sum(node.op == op for node in nodes) + 1}"
        nodes.append(Node(op, name, inputs, attributes))
        names[equation.outvars[0]] = name


def _glue(equation: Any, nodes: list[Node]) -> tuple[str, dict[str, Any]] | None:
    """Returns (op, attributes) of what stands between layers, None where it adds nothing."""
    params = equation.params
    before = equation.invars[0].aval.shape
    after = equation.outvars[0].aval.shape
    match equation.primitive.name:
        case "add" if before == equation.invars[1].aval.shape:
            return "add", {}
        case "slice" if not any(params["start_indices"]) and params["limit_indices"] == before:
            _, strides, across, _ = params["strides"]
            if strides == across == 1:
                return None
            if strides == across:
                return "subsample", {"strides": (strides, across)}
        case "pad":
            *others, (low, high, inner) = params["padding_config"]
            if not inner and not any(map(any, others)):
                if low == high == 0:
                    return None
                return "pad_channels", {"before": int(low), "after": int(high)}
        case "reduce_window_max":
            return "max_pool", _pool(params)
        # Both sums are taken for a mean: the division that follows is checked, and adds nothing.
        case "reduce_sum" if params["axes"] == (1, 2):
            return "mean", {_COUNT: before[1] * before[2]}
        case "reduce_window_sum" if not any(map(any, params["padding"])):
            pool = _pool(params)
            count = pool["window"][0] * pool["window"][1]
            return "average_pool", pool | {"include_padding": True, _COUNT: count}
        case "div" if isinstance(equation.invars[1], jax.extend.core.Literal):
            # A reshape may stand between.
            sums = [node for node in nodes[-2:] if _COUNT in node.attributes]
            if sums and sums[-1].attributes[_COUNT] == equation.invars[1].val:
                return None
        case "reshape" | "broadcast_in_dim" | "squeeze":
            return "reshape", {"shape": after[1:]}
    raise NotImplementedError(f"a network with {equation} cannot be exported.")


def _pool(params: dict[str, Any]) -> dict[str, Any]:
    return {
        "window": params["window_dimensions"][1:3],
        "strides": params["window_strides"][1:3],
        "padding": params["padding"][1:3],
    }


def with_roles(overrides: Sequence[str], module: nn.Module, image_size: int) -> tuple[str, ...]:
    """Puts layers' names in the place of the roles `@first` and `@last`.

    `@first=w8a8` means the first layer with weights and the first quantized activation; `@last`,
    the last ones.

    Args:
      overrides: as `assign_bits` takes them, but for the roles.
      module: the classifier.
      image_size: side of its images in pixels.

    Raises:
      ConfigError: there is no such role.
    """
    if not any(text.startswith("@") for text in overrides):
        return tuple(overrides)
    nodes, written = trace(module, image_size), []
    weights = [node.name for node in nodes if node.op in ("conv", "dense")]
    activations = [node.name for node in nodes if OPERATIONS[node.op].activation]
    for text in overrides:
        if not text.startswith("@"):
            written.append(text)
            continue
        role, changed = parse_override(text)
        if role not in _ROLES:
            raise ConfigError(f"quant.overrides names {role!r}: {nearest(role, _ROLES)}")
        for kind, names in (("weight", weights), ("activation", activations)):
            if kind in changed and names:
                written.append(f"{names[_ROLES[role]]}={kind[0]}{changed[kind]}")
    return tuple(written)


_ROLES = {"@first": 0, "@last": -1}
