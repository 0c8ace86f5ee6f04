"""Health: a score of a student without data, from held-out generated images.

The glossary in adadfq_jax/README.md says what the score ranks.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.game import losses
from adadfq_jax.game.methods import METHODS
from adadfq_jax.models.layers import apply_with_moments, stored_statistics
from adadfq_jax.models.network import Network

# The same margin whatever the method and its constants, so that scores can be compared.
_LOWER = METHODS["adadfq"].defaults["game.lambda_l"]
_UPPER = METHODS["adadfq"].defaults["game.lambda_u"]


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
    """What teacher and student make of N held-out images.

    Attributes:
      labels: (N,) classes that the images were made for.
      teacher, student: (N,) classes that the two networks give the images.
      h_prime: (M,) H' of the images that fill whole training batches, M <= N.
      l_bns: L_BNS of the images, mean over batches.
      loss: cross entropy of the student's logits with the labels, mean over the images.
      classes: number of classes C.
    """

    labels: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    h_prime: np.ndarray
    l_bns: float
    loss: float
    classes: int

    @property
    def agreement(self) -> float:
        """Share of the images that both networks give the same class."""
        return float(np.mean(self.teacher == self.student))

    @property
    def in_margin(self) -> float:
        """Share of the images whose H' lies in AdaDFQ's margin: neither too easy nor too hard."""
        return float(np.mean((self.h_prime >= _LOWER) & (self.h_prime <= _UPPER)))

    @property
    def health(self) -> float:
        """The score, 0 to 1: agreement x share inside the margin / (1 + L_BNS).

        The last two factors weigh the images, because agreement alone is also high where images are
        too easy, or unlike the teacher's training data.
        """
        return self.agreement * self.in_margin / (1 + self.l_bns)

    def numbers(self) -> dict[str, float]:
        """Returns the numbers to log, by name."""
        return {
            "agreement": self.agreement,
            "in_margin": self.in_margin,
            "held_out_l_bns": self.l_bns,
            "held_out_loss": self.loss,
            "health": self.health,
        }

    def histogram(self) -> list[int]:
        """Counts H' in 25 equal bins from 0 to 1."""
        return np.histogram(self.h_prime, bins=25, range=(0, 1))[0].tolist()

    def per_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts by the class that the images were made for.

        Returns:
          (images of the class; of these, the images that the teacher gives this class; and those
          that both networks give the same class, whichever it is), each (C,).
        """
        kinds = (
            np.ones_like(self.labels),
            self.teacher == self.labels,
            self.teacher == self.student,
        )
        return tuple(
            np.bincount(self.labels, weights=kind, minlength=self.classes) for kind in kinds
        )


def score(
    teacher: Network,
    student: Network,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    at_a_time: int = 256,
) -> Answers:
    """Runs teacher and student on held-out images and compares their outputs.

    Args:
      teacher, student: networks with the same input normalisation.
      images: (N, H, W, 3), normalised.
      labels: (N,) classes that the images were made for.
      batch_size: the run's batch size, in which H' is computed, since it is scaled to the batch.
      at_a_time: images that the networks take at a time; L_BNS depends on it.
    """
    z_p, z_q, l_bns = _run_both(teacher, student, images, at_a_time)
    size = min(batch_size, len(images))
    whole = len(images) // size * size
    groups = [part[:whole].reshape(-1, size, part.shape[-1]) for part in (z_p, z_q)]
    return Answers(
        labels=np.asarray(labels),
        teacher=z_p.argmax(-1),
        student=z_q.argmax(-1),
        h_prime=np.asarray(jax.vmap(losses.normalized_entropy)(*map(jnp.asarray, groups))).ravel(),
        l_bns=l_bns,
        loss=float(losses.cross_entropy(z_q, np.asarray(labels))),
        classes=teacher.classes,
    )


def _run_both(
    teacher: Network, student: Network, images: np.ndarray, at_a_time: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns z_P and z_Q, each (N, C), and L_BNS, mean over the batches."""
    parts, l_bns, counts = [], [], []
    for start in range(0, len(images), at_a_time):
        batch = jax.device_put(images[start : start + at_a_time])
        z_p, distance = _run_teacher(teacher.module, teacher.on_device, batch)
        parts.append((np.asarray(z_p), np.asarray(student(batch))))
        l_bns.append(float(distance))
        counts.append(len(batch))
    z_p, z_q = (np.concatenate(part) for part in zip(*parts, strict=True))
    return z_p, z_q, float(np.average(l_bns, weights=counts))


@functools.partial(jax.jit, static_argnums=0)
def _run_teacher(module: nn.Module, variables: Any, images: jax.Array):
    """Returns P's logits and L_BNS of the images."""
    logits, moments = apply_with_moments(module, variables, images)
    return logits, losses.batch_norm_statistics_loss(moments, stored_statistics(variables))
