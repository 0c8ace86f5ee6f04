"""Why a student differs from its teacher: costs of layers, coverage of images."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.evaluation.statistics import apply_for_moments, divergences
from adadfq_jax.models.network import Network, flatten, unflatten
from adadfq_jax.models.tracing import trace
from adadfq_jax.reporting.layer_errors import BATCH

_FINE_BITS = 16  # so many that the error of quantization is negligible


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """The part of a student's error that the bits of one layer cause.

    Attributes:
      name: name of the layer.
      kind: "weight" or "activation".
      bits: bit-width k.
      cost: share of the squared distance between the logits of student and teacher that disappears
        if only this layer, with the same range, has 16 bits. Negative if the distance grows, which
        means that the student has adapted to the layer's codes.
    """

    name: str
    kind: str
    bits: int
    cost: float


@dataclasses.dataclass(frozen=True, eq=False)
class Coverage:
    """How similar a kind of images is to a teacher's training data.

    Attributes:
      name: the kind of images, such as "generated".
      distances: (L,) for each BatchNorm, in the network's order: how far the input's statistics are
        from those of the training data, as the Kullback-Leibler divergence of normal distributions
        with these moments, in nats, mean over the channels.
      confidence: (N,) the teacher's probability of the class that it gives each image.
      classes: share of the classes that the teacher gives to at least one image.
    """

    name: str
    distances: np.ndarray
    confidence: np.ndarray
    classes: float


def layer_costs(student: Network, teacher: Network, images: np.ndarray) -> list[LayerCost]:
    """Measures the cost of each layer's bits, in the order of the layers.

    Args:
      student: a network with `bits` and `ranges`.
      teacher: the network that the student is a quantized copy of.
      images: (N, H, W, 3), normalised.
    """
    z_p = np.asarray(teacher(images))
    bits = flatten(student.variables["bits"])
    others = {name: part for name, part in student.variables.items() if name != "bits"}

    def distance(bits: dict[str, np.ndarray]) -> float:
        return float(_distance(student.module, others, unflatten(bits), images, z_p))

    whole = distance(bits)
    found = []
    for node in trace(student.module, student.image_size):
        for kind in ("weight", "activation"):
            if (name := f"{node.name}/{kind}") in bits:
                without = distance(bits | {name: np.int32(_FINE_BITS)})
                cost = 1 - without / whole if whole else 0.0
                found.append(LayerCost(node.name, kind, int(bits[name]), cost))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _distance(module: nn.Module, variables: Any, bits: Any, images: jax.Array, z_p: jax.Array):
    """Returns the mean squared difference of logits, after the mean of each image is removed."""
    difference = z_p - module.apply(variables | {"bits": bits}, images)
    return jnp.var(difference, axis=-1).mean()


def coverage(name: str, teacher: Network, images: np.ndarray) -> Coverage:
    """Measures how similar a kind of images is to a teacher's training data.

    Args:
      name: the kind of images.
      teacher: the network in full precision.
      images: (N, H, W, 3), normalised; whole batches of 64 are used, or all images if fewer.
    """
    size = min(BATCH, len(images))
    logits, moments = [], []
    for start in range(0, len(images) // size * size, size):
        batch = images[start : start + size]
        z_p, seen = apply_for_moments(teacher.module, teacher.on_device, batch)
        logits.append(np.asarray(z_p))
        moments.append(seen)
    probabilities = np.asarray(jax.nn.softmax(np.concatenate(logits)))
    by_norm = [
        tuple(np.stack([part[i] for part in seen]) for i in (0, 1))
        for seen in zip(*moments, strict=True)
    ]
    return Coverage(
        name=name,
        distances=divergences(teacher, by_norm)[_in_order(teacher)],
        confidence=probabilities.max(-1),
        classes=len(np.unique(probabilities.argmax(-1))) / teacher.classes,
    )


def _in_order(network: Network) -> list[int]:
    """Returns the index of each BatchNorm in the order of names, listed in the network's order."""
    flat = flatten(network.variables["batch_stats"])
    by_name = sorted({name.rpartition("/")[0] for name in flat}, key=lambda name: name.split("/"))
    nodes = trace(network.module, network.image_size)
    return [by_name.index(node.name) for node in nodes if node.op == "norm"]
