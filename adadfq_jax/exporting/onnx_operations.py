"""What each kind of node becomes in ONNX: the table `WRITERS`, and `FORMS` of it.

Every entry maps (writer, node, the tensors that the node reads) to the tensor that it makes.
Everything is of opset 13, but for constants of 4 bits.
"""

import numpy as np

from adadfq_jax.exporting import onnx_integer_layers, onnx_layers
from adadfq_jax.exporting.onnx_layers import pads
from adadfq_jax.exporting.onnx_writer import Writer
from adadfq_jax.models.graph import Node
from adadfq_jax.models.operations import resampling_matrix

_END = np.iinfo(np.int64).max


def _plain(op: str, **attributes):
    """Returns what writes an operation that ONNX has as it is."""

    def write(writer: Writer, node: Node, *inputs: str) -> str:
        return writer.add(op, node.name, list(inputs), node.name, **attributes)

    return write


def _scale(writer: Writer, node: Node, x: str) -> str:
    name = node.name
    factor, shift = (
        writer.constant(f"{name}/{part}", np.float32(node.attributes[part]))
        for part in ("factor", "shift")
    )
    x = writer.add("Mul", name, [x, factor], f"{name}/scaled")
    return writer.add("Add", name, [x, shift], name)


def _slice(writer: Writer, node: Node, x: str, **parts: list[int]) -> str:
    constants = [
        writer.constant(f"{node.name}/{part}", np.array(value, np.int64))
        for part, value in parts.items()
    ]
    return writer.add("Slice", node.name, [x, *constants], node.name)


def _slice_channels(writer: Writer, node: Node, x: str) -> str:
    start, stop = node.attributes["start"], node.attributes["stop"]
    return _slice(writer, node, x, starts=[start], ends=[stop], axes=[1], steps=[1])


def _subsample(writer: Writer, node: Node, x: str) -> str:
    steps = list(node.attributes["strides"])
    return _slice(writer, node, x, starts=[0, 0], ends=[_END] * 2, axes=[2, 3], steps=steps)


def _shuffle_channels(writer: Writer, node: Node, x: str) -> str:
    channels = writer.shapes[node.name][-1]
    order = np.arange(channels).reshape(node.attributes["groups"], -1).T.reshape(-1)
    return writer.add(
        "Gather", node.name, [x, writer.constant(f"{node.name}/order", order)], node.name, axis=1
    )


def _pad_channels(writer: Writer, node: Node, x: str) -> str:
    before, after = node.attributes["before"], node.attributes["after"]
    amounts = np.array([0, before, 0, 0, 0, after, 0, 0], np.int64)
    return writer.add(
        "Pad", node.name, [x, writer.constant(f"{node.name}/pads", amounts)], node.name
    )


def _pad(writer: Writer, node: Node, x: str) -> str:
    (top, bottom), (left, right) = node.attributes["padding"]
    constants = [
        writer.constant(f"{node.name}/pads", np.array([0, 0, top, left, 0, 0, bottom, right])),
        writer.constant(f"{node.name}/value", np.float32(node.attributes["value"])),
    ]
    return writer.add("Pad", node.name, [x, *constants], node.name)


def _pool(op: str, **flags: str):
    """Returns what writes a pool, with ONNX's flags by the names of ours."""

    def write(writer: Writer, node: Node, x: str) -> str:
        settings = node.attributes
        return writer.add(
            op,
            node.name,
            [x],
            node.name,
            kernel_shape=list(settings["window"]),
            strides=list(settings["strides"]),
            pads=pads(settings["padding"]),
            **{theirs: int(settings[ours]) for theirs, ours in flags.items()},
        )

    return write


def _resample(writer: Writer, node: Node, x: str) -> str:
    # By rows, then by columns; ONNX has no adaptive average, and other rules for its Resize.
    name, method = node.name, node.attributes["method"]
    before, after = writer.shapes[node.inputs[0]][:2], node.attributes["size"]
    down, across = (resampling_matrix(method, *sides) for sides in zip(before, after, strict=True))
    rows = [writer.constant(f"{name}/down", down), x]
    x = writer.add("MatMul", f"{name}/rows", rows, f"{name}/rows")
    return writer.add("MatMul", name, [x, writer.constant(f"{name}/across", across.T)], name)


def _flatten(writer: Writer, node: Node, x: str) -> str:
    shape = writer.constant(f"{node.name}/shape", np.array([0, -1, 1, 1], np.int64))
    return writer.add("Reshape", node.name, [x, shape], node.name)


WRITERS = {
    "conv": onnx_layers.layer,
    "dense": onnx_layers.layer,
    "norm": onnx_layers.norm,
    **onnx_layers.activation_writers(onnx_layers.quantize),
    "sigmoid": _plain("Sigmoid"),
    "hardsigmoid": _plain("HardSigmoid", alpha=1 / 6, beta=0.5),
    "add": _plain("Add"),
    "multiply": _plain("Mul"),
    "scale": _scale,
    "concatenate": _plain("Concat", axis=1),
    "slice_channels": _slice_channels,
    "shuffle_channels": _shuffle_channels,
    "pad_channels": _pad_channels,
    "subsample": _subsample,
    "pad": _pad,
    "max_pool": _pool("MaxPool"),
    "average_pool": _pool("AveragePool", count_include_pad="include_padding"),
    "mean": _plain("GlobalAveragePool"),
    "resample": _resample,
    "flatten": _flatten,
    # Features are images of one pixel here.
    "reshape": lambda writer, node, x: x,
}

# By form: layers and quantizers as engines recognise them, or as the student computes them.
FORMS = {
    "integer": WRITERS
    | dict.fromkeys(("conv", "dense"), onnx_integer_layers.layer)
    | onnx_layers.activation_writers(onnx_integer_layers.quantize),
    "exact": WRITERS,
}
