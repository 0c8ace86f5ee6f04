"""The state that steps change, and the networks' outputs within a step."""

import enum
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class Phase(enum.Enum):
    """What a step trains: always G, in some phases the activation ranges or Q as well."""

    CALIBRATE = "calibrate"  # G learns; activation ranges follow the images that Q sees
    WARMUP = "warmup"  # G learns; ranges are frozen
    PLAY = "play"  # G and Q learn; ranges are frozen, unless Q learns them as parameters


@flax.struct.dataclass
class Player:
    """One player's parameters and the state of the optimizer that trains them.

    Attributes:
      params: G's parameters; for Q, the collection `params` and, where ranges are learned,
        `clipping`.
      opt_state: the optimizer's state for all of `params`.
    """

    params: Any
    opt_state: optax.OptState


@flax.struct.dataclass
class GameState:
    """All arrays that a step needs, apart from the teacher's.

    Attributes:
      step: steps taken so far, int32 scalar.
      seed: the seed of all random draws, uint32 scalar.
      generator: G.
      student: Q.
      ranges: Q's calibrated ranges, the `ranges` collection; where ranges are learned, the ends
        in the student's `clipping` replace these.
      bits: Q's bit-widths, the `bits` collection.
    """

    step: jax.Array
    seed: jax.Array
    generator: Player
    student: Player
    ranges: Any
    bits: Any


@flax.struct.dataclass
class Responses:
    """Outputs of teacher and student for a batch of images.

    The leading axis counts slices of the batch, one per device. A device's responses lack that
    axis until they are gathered.

    Attributes:
      teacher_logits: z_P, (slices, B / slices, C).
      student_logits: z_Q, same shape.
      moments: (mean, variance) of each of P's BatchNorm inputs over a slice, each
        (slices, channels).
      extra: (z_P, z_Q) for each kind of images from which only Q learns, each (slices, N, C).
    """

    teacher_logits: jax.Array
    student_logits: jax.Array
    moments: list[tuple[jax.Array, jax.Array]]
    extra: list[tuple[jax.Array, jax.Array]]

    def logits(self) -> tuple[jax.Array, jax.Array]:
        """Returns z_P and z_Q of G's images, each (B, C)."""
        return _join(self.teacher_logits), _join(self.student_logits)

    def all_logits(self) -> tuple[jax.Array, jax.Array]:
        """Returns z_P and z_Q of all images that Q learns from: G's, then the extra ones."""
        kinds = [(self.teacher_logits, self.student_logits), *self.extra]
        z_p, z_q = ([_join(logits) for logits in each] for each in zip(*kinds, strict=True))
        return jnp.concatenate(z_p), jnp.concatenate(z_q)


def _join(slices: jax.Array) -> jax.Array:
    return slices.reshape(-1, slices.shape[-1])
