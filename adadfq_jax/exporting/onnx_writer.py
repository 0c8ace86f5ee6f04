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
      storage: of codes of up to 4 bits in the integer form, `uint4` or, by default, INT8.
      has_uint4: whether a constant is UINT4, which needs a newer opset.
      notes: by layer of the integer form, why onnxruntime does not compute it in integers.
      rounded: layers whose biases are rounded to INT32 as they are.
      float_before: quantizers of the integer form that directly follow a layer of floats.
      saturating: layers of the integer form whose sums of two products do not fit 16 bits.
    """

    def __init__(
        self, network: QuantizedNetwork, folded: dict[str, Node], storage: str | None = None
    ):
        self.network = network
        self.folded = folded
        self.storage = storage
        self.operations: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.values = {INPUT: INPUT}
        self.has_uint4 = False
        self.notes: dict[str, str] = {}
        self.rounded: list[str] = []
        self.float_before: set[str] = set()
        self.saturating: list[str] = []

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
