"""A classifier as a list of operations, read off its module: what every exported format is made of.

The layers of `layers` become one operation each, by their names; what stands between them
(additions, shortcuts, pooling) is read from the traced program. A new network needs nothing here if
it is made of those layers, additions, pools, `global_average` and one dense layer at its end; other
operations go into `_glue`, and into what runs them: `exporting/numpy_reader.py` and
`exporting/onnx_qdq.py`. Arrays are (B, H, W, channels) throughout.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp

from adadfq_jax.models.layers import FrozenBatchNorm, QuantConv, QuantDense, QuantReLU

INPUT = "image"
_MARK = "adadfq_layer_"
# Only its axis is looked for in the traced shapes.
_BATCH = 2


@dataclasses.dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
      op: conv, norm, relu, dense (layers, with their variables); add, subsample, pad_channels,
        max_pool, average_pool, mean, reshape.
      name: the layer's, such as `stage1_block1/conv1`; for others made up.
      inputs: names of the nodes that it reads, or `INPUT`.
      attributes: what else defines it, as JSON would hold it.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any]


def trace(module: nn.Module, image_size: int) -> list[Node]:
    """Reads a classifier's operations, in an order in which they can be computed.

    Args:
      module: of `registry.build`.
      image_size: side of its images in pixels.

    Returns:
      The nodes; the last one makes the logits.

    Raises:
      NotImplementedError: the module does something between its layers that is not known here.
    """
    layers: list[tuple[str, str, dict[str, Any]]] = []
    images = jax.ShapeDtypeStruct((_BATCH, image_size, image_size, 3), jnp.float32)
    with nn.intercept_methods(functools.partial(_mark_layer, layers)):
        program = jax.make_jaxpr(lambda images: module.apply({}, images))(images)
    nodes: list[Node] = []
    (source,) = program.jaxpr.invars
    _walk(program.jaxpr, {source: INPUT}, layers, nodes)
    return nodes


def _mark_layer(layers: list, layer: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Puts a call of a recognisable name in a layer's place; its variables are never asked for."""
    module = context.module
    if context.method_name != "__call__":
        return layer(*args, **kwargs)
    (x,) = args
    match module:
        case QuantConv():
            padding = module.kernel_size // 2 if module.padding is None else module.padding
            height, width = (
                (side + 2 * padding - module.kernel_size) // module.strides + 1
                for side in x.shape[1:3]
            )
            shape = (x.shape[0], height, width, module.features)
            attributes = {
                "strides": module.strides,
                "padding": padding,
                "groups": module.groups,
            }
            op = "conv"
        case QuantDense():
            op, shape, attributes = "dense", (x.shape[0], module.features), {}
        case FrozenBatchNorm():
            op, shape, attributes = "norm", x.shape, {"epsilon": module.epsilon}
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
                return "subsample", {"strides": strides}
        case "pad":
            *others, (low, high, inner) = params["padding_config"]
            if not inner and not any(map(any, others)):
                if low == high == 0:
                    return None
                return "pad_channels", {"before": int(low), "after": int(high)}
        case "reduce_window_max":
            _, window, _, _ = params["window_dimensions"]
            _, strides, _, _ = params["window_strides"]
            _, (padding, _), _, _ = params["padding"]
            return "max_pool", {"window": window, "strides": strides, "padding": padding}
        # Both sums are taken for a mean: the division that follows is checked, and adds nothing.
        case "reduce_sum" if params["axes"] == (1, 2):
            return "mean", {"count": before[1] * before[2]}
        case "reduce_window_sum" if not any(map(any, params["padding"])):
            _, window, across, _ = params["window_dimensions"]
            if params["window_strides"] == params["window_dimensions"] == (1, window, window, 1):
                return "average_pool", {"window": window, "count": window * across}
        case "div" if isinstance(equation.invars[1], jax.extend.core.Literal):
            # A reshape may stand between.
            sums = [node for node in nodes[-2:] if "count" in node.attributes]
            if sums and sums[-1].attributes["count"] == equation.invars[1].val:
                return None
        case "reshape" | "broadcast_in_dim" | "squeeze":
            return "reshape", {"shape": list(after[1:])}
    raise NotImplementedError(f"a network with {equation} cannot be exported.")
