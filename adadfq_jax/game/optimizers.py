"""How the players move: optimizers without their learning rates, and the rates by global step.

Rates are applied by the global step (`step.py`), because a counter of an optimizer's own would
start when Q first learns and read the milestones late.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

STUDENT_OPTIMIZERS = ("sgd", "adam")

# Of the steps that Q plays: the share in which Adam's rate rises from 0, while its moments are of
# few gradients and Q is furthest from P.
_RAMP = 0.05

# The bit-width that `student.relative_rate` is meant for, and all fewer.
_RATED_BITS = 3


def generator_optimizer(fields: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns Adam without its rate, of the fields of `config.generator`."""
    return optax.scale_by_adam(b1=fields.beta1, b2=fields.beta2)


def falling_schedule(fields: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Returns the rate by global step: times `decay` at each milestone, in epochs."""
    return optax.piecewise_constant_schedule(
        fields.learning_rate,
        {milestone * steps_per_epoch: fields.decay for milestone in fields.milestones},
    )


def student_optimizer(fields: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns Q's optimizer without its rate.

    Args:
      fields: of `config.student`. "sgd" is the paper's, with Nesterov momentum and weight
        decay on every parameter. "adam" scales each tensor's step by its root mean square (as
        Adafactor, Shazeer & Stern, ICML 2018), so that one rate serves kernels, BatchNorms and
        ranges of any network.
    """
    if fields.optimizer == "adam":
        return optax.chain(optax.scale_by_adam(), optax.scale_by_param_block_rms())
    return optax.chain(
        optax.add_decayed_weights(fields.weight_decay),
        optax.trace(fields.momentum, nesterov=True),
    )


def rate_field(fields: ml_collections.ConfigDict) -> str:
    """Returns the name of the field that holds Q's rate, of the fields of `config.student`."""
    return "student.relative_rate" if fields.optimizer == "adam" else "student.learning_rate"


def student_schedule(rules: Any, fewest_bits: jax.Array) -> optax.Schedule:
    """Returns the rate of Q by global step.

    Args:
      rules: of the game (`rules.Rules`). For "sgd" the rate falls at milestones; for "adam" it
        rises for the first twentieth of play and falls along a cosine to 0 at the last step.
      fewest_bits: of all that Q quantizes, int32 scalar. The steps of a quantizer of k bits are
        1 / (2^k - 1) of its range, and so is what they take from Q; Adam's rate falls alike, so
        that a student with little to repair is not led away from its teacher.
    """
    student = rules.student
    if student.optimizer == "sgd":
        return falling_schedule(student, rules.steps_per_epoch)
    first = rules.warmup_epochs * rules.steps_per_epoch
    steps = max(rules.epochs * rules.steps_per_epoch - first, 1)
    ramp = round(_RAMP * steps)
    play = optax.warmup_cosine_decay_schedule(0.0, student.relative_rate, ramp, steps)
    share = jnp.minimum((2**_RATED_BITS - 1) / (jnp.left_shift(1, fewest_bits) - 1), 1)
    return lambda step: share * play(jnp.maximum(step - first, 0))
