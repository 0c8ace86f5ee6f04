"""What every format writes down: a student as the codes of its weights, and what turns them into
numbers.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from adadfq_jax.models.graph import GraphNetwork, Node, to_json
from adadfq_jax.models.network import Network, flatten, kernel_range, unflatten
from adadfq_jax.models.operations import PASSES_CODES
from adadfq_jax.models.preparation import Preparation
from adadfq_jax.models.tracing import trace
from adadfq_jax.quantization import codes as codes_module
from adadfq_jax.quantization.codes import encode


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """A layer's kernel, (codes + zero_point) step by output channel.

    A teacher's has no bits: its `codes` are the kernel itself, float32, and the step is 1.

    Attributes:
      codes: uint8, in [0, 2^bits - 1]: (height, width, in, out) or (in, out).
      step: float32, (out,), in units per code.
      zero_point: (out,), integer-valued float32, of any size: a channel whose range excludes 0 has
        one outside [0, 2^bits - 1], an almost constant one a huge one.
      bits: bit-width k, or None.
      bias: float32, (out,), or None.
    """

    codes: np.ndarray
    step: np.ndarray
    zero_point: np.ndarray
    bits: int | None
    bias: np.ndarray | None

    def decode(self) -> np.ndarray:
        """Returns the kernel, float32."""
        return (self.codes.astype(np.float32) + self.zero_point) * self.step


@dataclasses.dataclass(frozen=True, eq=False)
class Norm:
    """A BatchNorm's variables, float32, (channels,) each.

    Attributes:
      scale, bias: 1 and 0 where it has none.
      mean, variance: its statistics.
      affine: whether it has a scale and a bias.
    """

    scale: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    affine: bool = True

    def factor_and_shift(self, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns (factor, shift): the BatchNorm is x factor + shift."""
        factor = self.scale / np.sqrt(self.variance + np.float32(epsilon))
        return factor, self.bias - self.mean * factor


@dataclasses.dataclass(frozen=True)
class Activation:
    """A quantized activation: its static range and bit-width."""

    minimum: float
    maximum: float
    bits: int

    def affine(self) -> tuple[np.float32, np.float32, int]:
        """Returns (step, zero_point, largest code); see `quantization/codes.py`."""
        ends = np.float32(self.minimum), np.float32(self.maximum)
        _, step, zero_point, n = map(np.asarray, codes_module.affine(*ends, np.int32(self.bits)))
        return step[()], zero_point[()], int(n)


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """All that a file needs to hold to be the student.

    Attributes:
      architecture, image_size, mean, std, preparation, class_names: as in `Network`.
      classes: number of classes C.
      module: the linen module of teacher and student.
      nodes: the operations.
      weights, norms, activations: variables by the layers' names.
    """

    architecture: str
    classes: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    preparation: Preparation
    module: nn.Module
    nodes: tuple[Node, ...]
    weights: dict[str, Weights]
    norms: dict[str, Norm]
    activations: dict[str, Activation]
    class_names: tuple[str, ...] | None = None

    @property
    def graph(self) -> list[Any] | None:
        """The nodes as JSON holds them, of a network that only they define; else None."""
        return to_json(self.nodes) if isinstance(self.module, GraphNetwork) else None

    @functools.cached_property
    def by_name(self) -> dict[str, Node]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def readers(self) -> dict[str, list[Node]]:
        """By node, those that read it."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def quantized_source(self, node: Node) -> str | None:
        """Returns the quantized activation whose codes a layer reads, if it reads codes."""
        (name,) = node.inputs
        while name in self.by_name and self.by_name[name].op in PASSES_CODES:
            (name,) = self.by_name[name].inputs
        return name if name in self.activations else None

    @functools.cached_property
    def network(self) -> Network:
        """The simulated network of the same numbers: the weights decoded, activations quantized."""
        flat: dict[str, Any] = {}
        for name, weights in self.weights.items():
            flat[f"params/{name}/kernel"] = weights.decode()
            if weights.bias is not None:
                flat[f"params/{name}/bias"] = weights.bias
        for name, norm in self.norms.items():
            if norm.affine:
                flat[f"params/{name}/scale"], flat[f"params/{name}/bias"] = norm.scale, norm.bias
            flat[f"batch_stats/{name}/mean"] = norm.mean
            flat[f"batch_stats/{name}/var"] = norm.variance
        for name, activation in self.activations.items():
            # Without bits for weights, layers take theirs as they are.
            flat[f"bits/{name}/activation"] = np.int32(activation.bits)
            flat[f"ranges/{name}/minimum"] = np.float32(activation.minimum)
            flat[f"ranges/{name}/maximum"] = np.float32(activation.maximum)
        return Network(
            architecture=self.architecture,
            module=self.module,
            variables=unflatten(flat),
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            class_names=self.class_names,
            preparation=self.preparation,
        )


def take_apart(student: Network) -> QuantizedNetwork:
    """Takes a student apart into integers and what belongs to them.

    Args:
      student: a `Student`; of a teacher, the parts are in full precision.
    """
    # JAX computes in float32, whatever the teacher's file holds.
    arrays = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in flatten(student.variables).items()
    }
    nodes = trace(student.module, student.image_size)
    weights, norms, activations = {}, {}, {}
    for node in nodes:
        name = node.name
        match node.op:
            case "conv" | "dense":
                weights[name] = _weights(
                    arrays[f"params/{name}/kernel"],
                    arrays.get(f"bits/{name}/weight"),
                    arrays.get(f"params/{name}/bias"),
                    kernel_range(arrays, name),
                )
            case "norm":
                mean = arrays[f"batch_stats/{name}/mean"]
                norms[name] = Norm(
                    scale=arrays.get(f"params/{name}/scale", np.ones_like(mean)),
                    bias=arrays.get(f"params/{name}/bias", np.zeros_like(mean)),
                    mean=mean,
                    variance=arrays[f"batch_stats/{name}/var"],
                    affine=node.attributes["affine"],
                )
            case _ if f"bits/{name}/activation" in arrays:
                activations[name] = Activation(
                    minimum=float(arrays[f"ranges/{name}/minimum"]),
                    maximum=float(arrays[f"ranges/{name}/maximum"]),
                    bits=int(arrays[f"bits/{name}/activation"]),
                )
    return QuantizedNetwork(
        architecture=student.architecture,
        classes=student.classes,
        image_size=student.image_size,
        mean=tuple(student.mean),
        std=tuple(student.std),
        preparation=student.preparation,
        module=student.module,
        nodes=nodes,
        weights=weights,
        norms=norms,
        activations=activations,
        class_names=student.class_names,
    )


def _weights(
    kernel: np.ndarray,
    bits: np.ndarray | None,
    bias: np.ndarray | None,
    ends: tuple[np.ndarray, np.ndarray],
) -> Weights:
    if bits is None:
        ones = np.ones(kernel.shape[-1], np.float32)
        return Weights(codes=kernel, step=ones, zero_point=0 * ones, bits=None, bias=bias)
    codes, step, zero_point = map(np.asarray, _encode(kernel, *ends, bits))
    return Weights(
        codes=codes.astype(np.uint8), step=step, zero_point=zero_point, bits=int(bits), bias=bias
    )


@jax.jit
def _encode(
    kernel: jax.Array, minimum: jax.Array, maximum: jax.Array, bits: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a kernel's codes, step and zero point, by the arithmetic of the simulation."""
    _, step, zero_point, _ = codes_module.affine(minimum, maximum, bits)
    return encode(kernel, minimum, maximum, bits), step, zero_point
