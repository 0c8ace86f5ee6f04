"""What changes from step to step, and what the networks answer in one."""

import enum
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


class Phase(enum.Enum):
    """What a step does: which of the activation ranges and the players move."""

    CALIBRATE = "calibrate"  # activation ranges follow the images that Q sees; G learns
    WARMUP = "warmup"  # ranges frozen; G learns
    PLAY = "play"  # ranges frozen, unless they are learned like Q's other parameters; both learn


@flax.struct.dataclass
class Player:
    """What one player learns, and the state of its optimizer.

    Attributes:
      params: G's parameters; of Q its collections `params` and, where ranges are learned,
        `clipping`.
      opt_state: of the optimizer of all of it.
    """

    params: Any
    opt_state: optax.OptState


@flax.struct.dataclass
class GameState:
    """All that changes, or that a step needs besides the teacher.

    Attributes:
      step: steps taken so far, int32 scalar.
      seed: the seed that all draws derive from, uint32 scalar.
      generator: G.
      student: Q.
      ranges: Q's ranges as calibrated, the `ranges` collection; where ranges are learned, their
        ends are in the student's `clipping`.
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
    """What teacher and student make of a batch's images, with a leading axis of slices.

    Before they are gathered over the devices there is one slice, and no such axis.

    Attributes:
      teacher_logits: z_P, (slices, B / slices, C).
      student_logits: z_Q, same shape.
      moments: (mean, variance) of each of P's BatchNorm inputs over a slice, each
        (slices, channels).
      extra: z_P and z_Q of images that Q alone learns from, a pair for each kind; (slices, N, C).
    """

    teacher_logits: jax.Array
    student_logits: jax.Array
    moments: list[tuple[jax.Array, jax.Array]]
    extra: list[tuple[jax.Array, jax.Array]]

    def logits(self) -> tuple[jax.Array, jax.Array]:
        """Returns z_P and z_Q of G's images, each (B, C)."""
        return _join(self.teacher_logits), _join(self.student_logits)

    def all_logits(self) -> tuple[jax.Array, jax.Array]:
        """Returns z_P and z_Q of all images that Q learns from, each (>= B, C)."""
        kinds = [(self.teacher_logits, self.student_logits), *self.extra]
        z_p, z_q = ([_join(logits) for logits in each] for each in zip(*kinds, strict=True))
        return jnp.concatenate(z_p), jnp.concatenate(z_q)


def _join(slices: jax.Array) -> jax.Array:
    return slices.reshape(-1, slices.shape[-1])
