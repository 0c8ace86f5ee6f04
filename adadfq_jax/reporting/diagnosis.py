"""Why a student is not its teacher: what each layer's bits cost, and what its images cover."""

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

_FINE_BITS = 16  # as good as not quantized


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What a quantized layer's bits cost.

    Attributes:
      name: the layer's.
      kind: "weight" or "activation".
      bits: bit-width k.
      cost: share of the student's squared distance from the teacher's logits that goes away when
        this layer alone, in the same range, has 16 bits; negative where the distance grows, since
        the student has adapted to the layer's codes.
    """

    name: str
    kind: str
    bits: int
    cost: float


@dataclasses.dataclass(frozen=True, eq=False)
class Coverage:
    """How a family of images looks to the teacher.

    Attributes:
      name: of the family.
      distances: (L,) of each BatchNorm, in the network's order: how far the input's statistics are
        from the training data's, as the Kullback-Leibler divergence of normal distributions with
        these moments, in nats, mean over the channels.
      confidence: (N,) the teacher's probability of its answer.
      classes: share of the classes that the teacher gives at least one image.
    """

    name: str
    distances: np.ndarray
    confidence: np.ndarray
    classes: float


def layer_costs(student: Network, teacher: Network, images: np.ndarray) -> list[LayerCost]:
    """Measures what each layer's bits cost, in the order of the layers.

    Args:
      student: a network with `bits` and `ranges`.
      teacher: the network that it is a copy of.
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
    """Returns the mean squared difference of logits, but for a constant of each image."""
    difference = z_p - module.apply(variables | {"bits": bits}, images)
    return jnp.var(difference, axis=-1).mean()


def coverage(name: str, teacher: Network, images: np.ndarray) -> Coverage:
    """Measures how the teacher sees a family of images.

    Args:
      name: of the family.
      teacher: the network in full precision.
      images: (N, H, W, 3), normalised; whole batches of 64 are looked at, or all if they are fewer.
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
    """Returns, for each BatchNorm of the network in turn, its place in the order of names."""
    flat = flatten(network.variables["batch_stats"])
    by_name = sorted({name.rpartition("/")[0] for name in flat}, key=lambda name: name.split("/"))
    nodes = trace(network.module, network.image_size)
    return [by_name.index(node.name) for node in nodes if node.op == "norm"]
