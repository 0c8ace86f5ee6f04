"""What collects an ONNX graph's operations and constants, node by node."""

import functools
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from adadfq_jax.exporting.quantized import QuantizedNetwork
from adadfq_jax.models.graph import INPUT, Node, value_shapes
from adadfq_jax.models.layers import input_shape


class Writer:
    """A graph that is being written.

    Attributes:
      network: the student.
      folded: by convolution, the BatchNorm that is folded into it.
      operations, constants: what is written.
      values: by node, the tensor that it makes.
      has_uint4: whether a constant is UINT4, which needs a newer opset.
    """

    def __init__(self, network: QuantizedNetwork, folded: dict[str, Node]):
        self.network = network
        self.folded = folded
        self.operations: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values = {INPUT: INPUT}
        self.has_uint4 = False

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every node's value, (H, W, channels) or (channels,), by name."""
        image = input_shape(self.network.module, self.network.image_size)
        return value_shapes(self.network.nodes, image)

    def add(self, op: str, name: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Appends an operation of ONNX; returns its output."""
        self.operations.append(
            helper.make_node(op, inputs, [output], name=f"{name}/{op}", **attributes)
        )
        return output

    def constant(self, name: str, value: Any) -> str:
        """Adds a constant; returns its name."""
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def normalise(self) -> None:
        """Puts the normalisation of pixels before everything else."""
        mean, std = (
            np.array(value, np.float32).reshape(1, -1, 1, 1) * np.float32(255)
            for value in (self.network.mean, self.network.std)
        )
        centred = self.add("Sub", INPUT, [INPUT, self.constant(f"{INPUT}/mean", mean)], "centred")
        divisor = self.constant(f"{INPUT}/std", std)
        self.values[INPUT] = self.add("Div", INPUT, [centred, divisor], "normalised")
