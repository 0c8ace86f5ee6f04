"""Optimizers of generator and student without learning rates, and the rates by global step.

The step applies the rates (`step.py`), because a schedule inside Q's optimizer would count from
Q's first update, which follows the warm-up, and reach the milestones late.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

STUDENT_OPTIMIZERS = ("sgd", "adam")

# Share of Q's training steps over which Adam's rate rises from 0: at first its moments average few
# gradients, and Q is furthest from P.
_RAMP = 0.05

# `student.relative_rate` applies in full up to this bit-width; more bits reduce it.
_RATED_BITS = 3


def generator_optimizer(fields: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns Adam without its rate, from the fields of `config.generator`."""
    return optax.scale_by_adam(b1=fields.beta1, b2=fields.beta2)


def falling_schedule(fields: ml_collections.ConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Returns the rate by global step, which `decay` multiplies at each milestone (in epochs)."""
    return optax.piecewise_constant_schedule(
        fields.learning_rate,
        {milestone * steps_per_epoch: fields.decay for milestone in fields.milestones},
    )


def student_optimizer(fields: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Returns Q's optimizer without its rate.

    Args:
      fields: those of `config.student`. "sgd" is the paper's optimizer, with Nesterov momentum
        and weight decay on every parameter. "adam" scales each tensor's step by the tensor's root
        mean square (as Adafactor, Shazeer & Stern, ICML 2018), so that one rate serves kernels,
        BatchNorms and ranges of any network.
    """
    if fields.optimizer == "adam":
        return optax.chain(optax.scale_by_adam(), optax.scale_by_param_block_rms())
    return optax.chain(
        optax.add_decayed_weights(fields.weight_decay),
        optax.trace(fields.momentum, nesterov=True),
    )


def rate_field(fields: ml_collections.ConfigDict) -> str:
    """Returns the name of the field that holds Q's rate, from the fields of `config.student`."""
    return "student.relative_rate" if fields.optimizer == "adam" else "student.learning_rate"


def student_schedule(rules: Any, fewest_bits: jax.Array) -> optax.Schedule:
    """Returns the rate of Q by global step.

    Args:
      rules: the `rules.Rules` of the run. For "sgd" the rate falls at milestones; for "adam" it
        rises for the first twentieth of play and falls along a cosine to 0 at the last step.
      fewest_bits: the smallest bit-width in Q, int32 scalar. A quantizer of k bits has steps of
        1 / (2^k - 1) of its range, so more bits mean smaller errors. Above 3 bits Adam's rate
        shrinks in the same proportion, because a student with small errors to repair would
        otherwise drift away from its teacher.
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
