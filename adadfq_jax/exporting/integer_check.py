"""The student in integer arithmetic, layer by layer, beside its simulation in floating point.

An integer accelerator multiplies codes by codes, adds them up in 32-bit integers and rescales once.
That is possible for a convolution whose input is quantized; by the protocol, the first convolution,
the last layer and MobileNetV2's expansions read floating point. Both sides here read the same
(simulated) input, so that a difference is the layer's own: the simulation rounds every product and
every sum to float32, the integers round nothing before the end.
"""

import dataclasses

import numpy as np

from adadfq_jax.exporting import integers, numpy_reader
from adadfq_jax.exporting.quantized import Activation, QuantizedNetwork, Weights
from adadfq_jax.models.graph import Node


@dataclasses.dataclass(frozen=True)
class LayerCheck:
    """How a layer in integers compares with its simulation.

    Attributes:
      layer: its name.
      difference: the largest, in units of the range of the layer's simulated output.
      accumulator_bits: bits, sign included, that the largest accumulated sum needs.
    """

    layer: str
    difference: float
    accumulator_bits: int


def check(network: QuantizedNetwork, images: np.ndarray) -> tuple[list[LayerCheck], list[str]]:
    """Computes every layer of quantized input in integers.

    Args:
      network: the student.
      images: (B, H, W, 3), normalised.

    Returns:
      (one check per layer of quantized input, the names of the layers whose input is not).
    """
    described, arrays = numpy_reader.parse(integers.to_bytes(network, {}))
    values = numpy_reader.compute_all(described, arrays, images)
    checks, others = [], []
    for node in network.nodes:
        if node.op not in ("conv", "dense"):
            continue
        source = network.quantized_source(node)
        if node.op == "dense" or source is None:
            others.append(node.name)
            continue
        x, simulated = values[node.inputs[0]], values[node.name]
        weights = network.weights[node.name]
        y, largest = _in_integers(node, x, weights, network.activations[source])
        checks.append(
            LayerCheck(
                layer=node.name,
                difference=float(np.abs(y - simulated).max() / max(np.ptp(simulated), 1e-30)),
                accumulator_bits=int(largest).bit_length() + 1,
            )
        )
    return checks, others


def _in_integers(
    node: Node, x: np.ndarray, weights: Weights, activation: Activation
) -> tuple[np.ndarray, float]:
    """Returns (a convolution's output, the largest accumulated sum of products of codes)."""
    settings = node.attributes
    step, zero_point, _ = activation.affine()
    # Integers in float64, in which matrix products are fast, and exact up to 2^53.
    codes = np.round(x.astype(np.float64) / step - zero_point)
    # A padded zero is the value 0, whose code is minus the zero point.
    seen = numpy_reader.windows(codes, settings, fill=-float(zero_point))
    kernel = weights.codes.astype(np.float64)
    groups = settings["groups"]
    products, sums = [], []
    for part, kernels in zip(
        np.split(seen, groups, axis=3), np.split(kernel, groups, axis=3), strict=True
    ):
        products.append(np.tensordot(part, kernels, ((4, 5, 3), (0, 1, 2))))
        sums.append(np.broadcast_to(part.sum((3, 4, 5))[..., None], products[-1].shape))
    accumulated, inputs = np.concatenate(products, axis=3), np.concatenate(sums, axis=3)
    count = np.prod(weights.codes.shape[:3])
    weight_sums = weights.codes.astype(np.float64).sum((0, 1, 2))
    # sum (c_x + z_x) (c_w + z_w), its three corrections apart
    total = accumulated + weights.zero_point * inputs.astype(np.float64)
    total += float(zero_point) * (weight_sums + count * weights.zero_point.astype(np.float64))
    y = total * (step.astype(np.float64) * weights.step)
    if weights.bias is not None:
        y = y + weights.bias
    return y, float(np.abs(accumulated).max())
