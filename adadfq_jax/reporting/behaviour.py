"""How teacher and student answer held-out generated images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.losses import normalized_entropy
from adadfq_jax.network import Network


@dataclasses.dataclass(frozen=True, eq=False)
class Behaviour:
    """Answers to N images.

    Attributes:
      labels: (N,) the classes that the images were made for.
      teacher, student: (N,) the classes that the two networks give them.
      h_prime: (M,) H' of the images that fill whole batches, M <= N.
      classes: number of classes C.
    """

    labels: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    h_prime: np.ndarray
    classes: int

    @property
    def agreement(self) -> float:
        """Share of the images that both networks give the same class."""
        return float(np.mean(self.teacher == self.student))

    def per_class(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts by the class that the images were made for.

        Returns:
          (images; those that the teacher gives this class; those that both networks give the same
          class, whichever it is), each (C,).
        """
        kinds = (
            np.ones_like(self.labels),
            self.teacher == self.labels,
            self.teacher == self.student,
        )
        return tuple(
            np.bincount(self.labels, weights=kind, minlength=self.classes) for kind in kinds
        )


def observe(
    teacher: Network, student: Network, images: np.ndarray, labels: np.ndarray, batch_size: int
) -> Behaviour:
    """Asks both networks.

    Args:
      teacher, student: two networks of one input space.
      images: (N, H, W, 3), normalised.
      labels: (N,) the classes that they were made for.
      batch_size: the game's: H' is relative to the images that it is computed with.
    """
    together = 256
    logits = [
        np.concatenate(
            [
                np.asarray(network(images[start : start + together]))
                for start in range(0, len(images), together)
            ]
        )
        for network in (teacher, student)
    ]
    size = min(batch_size, len(images))
    whole = len(images) // size * size
    groups = [part[:whole].reshape(-1, size, part.shape[-1]) for part in logits]
    h_prime = jax.vmap(normalized_entropy)(*map(jnp.asarray, groups))
    z_p, z_q = logits
    return Behaviour(
        labels=np.asarray(labels),
        teacher=z_p.argmax(-1),
        student=z_q.argmax(-1),
        h_prime=np.asarray(h_prime).ravel(),
        classes=teacher.classes,
    )
