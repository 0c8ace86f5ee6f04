"""Quantization in each layer: its error, the values that it clips, the codes that are not used."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.models.layers import ActivationLayer
from adadfq_jax.models.network import Network, flatten, kernel_range
from adadfq_jax.models.tracing import trace
from adadfq_jax.quantization.codes import MAX_BITS, decode, encode

BATCH = 64  # images at a time, since activations of large networks need much memory


@dataclasses.dataclass(frozen=True)
class QuantizedWeight:
    """The quantization of a kernel.

    Attributes:
      name: name of the layer.
      bits: bit-width k.
      sqnr: energy of the kernel over that of its quantization error, in dB; infinite without error,
        NaN where the kernel is 0 or not finite.
      dead: how many of the 2^k codes no weight of the layer has.
    """

    name: str
    bits: int
    sqnr: float
    dead: int


@dataclasses.dataclass(frozen=True)
class QuantizedActivation:
    """The quantization of an activation, over many images.

    Attributes:
      name: name of the layer.
      bits: bit-width k.
      minimum, maximum: the static range.
      largest: the largest value before quantization.
      sqnr: energy of the values over that of their quantization error, in dB, as for a kernel; the
        values are those in the student, so errors of earlier layers do not count.
      clipped: share of the values that lie outside the range.
      dead: how many of the 2^k codes no value has.
    """

    name: str
    bits: int
    minimum: float
    maximum: float
    largest: float
    sqnr: float
    clipped: float
    dead: int


def measure_weights(student: Network) -> list[QuantizedWeight]:
    """Measures the quantized kernels of a network, in the order of its layers."""
    arrays, found = flatten(student.variables), []
    for node in trace(student.module, student.image_size):
        bits = arrays.get(f"bits/{node.name}/weight")
        if bits is None:
            continue
        kernel = arrays[f"params/{node.name}/kernel"]
        ends = kernel_range(arrays, node.name)
        codes = encode(kernel, *ends, bits)
        error = kernel - decode(codes, *ends, bits)
        sqnr = _decibels(float(np.square(kernel).sum()), float(jnp.square(error).sum()))
        used = len(np.unique(np.asarray(codes)))
        found.append(QuantizedWeight(node.name, int(bits), sqnr, 2 ** int(bits) - used))
    return found


def measure_activations(student: Network, images: np.ndarray) -> list[QuantizedActivation]:
    """Measures the quantized activations of a network, in the order of its layers.

    Args:
      student: a network with `bits` and `ranges`.
      images: (N, H, W, 3), normalised.
    """

    @jax.jit
    def look(variables: Any, images: jax.Array) -> dict[str, dict[str, jax.Array]]:
        found: dict[str, dict[str, jax.Array]] = {}
        with nn.intercept_methods(functools.partial(_look, found)):
            student.module.apply(variables, images)
        return found

    parts = [
        jax.tree.map(np.asarray, look(student.variables, images[start : start + BATCH]))
        for start in range(0, len(images), BATCH)
    ]
    arrays, measured = flatten(student.variables), []
    for node in trace(student.module, student.image_size):
        if node.name not in parts[0]:
            continue
        seen = [part[node.name] for part in parts]
        bits = int(arrays[f"bits/{node.name}/activation"])

        def total(name: str, seen: list = seen) -> float:
            return float(np.sum([part[name] for part in seen], dtype=np.float64))

        measured.append(
            QuantizedActivation(
                name=node.name,
                bits=bits,
                minimum=float(arrays[f"ranges/{node.name}/minimum"]),
                maximum=float(arrays[f"ranges/{node.name}/maximum"]),
                largest=float(np.max([part["largest"] for part in seen])),
                sqnr=_decibels(total("signal"), total("error")),
                clipped=total("clipped") / total("values"),
                dead=2**bits - int(np.any([part["used"] for part in seen], axis=0).sum()),
            )
        )
    return measured


def _look(found: dict, layer: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    """Records the error of a quantized activation into `found`; returns what the layer returns."""
    module, y = context.module, layer(*args, **kwargs)
    if not isinstance(module, ActivationLayer) or context.method_name != "__call__":
        return y
    if not module.has_variable("bits", "activation"):
        return y
    x = module.activate(args[0])
    low, high = (module.get_variable("ranges", name) for name in ("minimum", "maximum"))
    codes = encode(x, low, high, module.get_variable("bits", "activation"))
    found["/".join(module.path)] = {
        "signal": jnp.square(x).sum(),
        "error": jnp.square(x - y).sum(),
        "clipped": jnp.sum((x < low) | (x > high)),
        "values": jnp.float32(x.size),
        "largest": x.max(),
        "used": jnp.zeros(2**MAX_BITS, bool).at[codes.astype(jnp.int32)].set(True),
    }
    return y


def _decibels(signal: float, error: float) -> float:
    if not (math.isfinite(signal) and math.isfinite(error)) or signal == 0:
        return math.nan
    return 10 * math.log10(signal / error) if error else math.inf
