"""The methods: which losses generator and student minimise, and with which constants.

All methods share one training step (`step.py`); only these losses and constants differ. To add a
method, write its two losses here and enter it in `METHODS`; transcribe it in `reference/`, and
list it among the methods that `tests/game/test_parity.py` compares.

`adadfq_plus` goes beyond the paper to keep more accuracy at few bits: AdaDFQ with four other
settings (`_PLUS`). A configuration can set each of them under any method; learned ranges need Adam.

An ablation is a method as well: AdaDFQ with a constant that removes one term (`_ABLATIONS`), or
`adadfq_plus` without one of the four settings (`_PLUS_ABLATIONS`).

Sources: AdaDFQ, Qian et al., CVPR 2023; AdaSG, Qian et al., AAAI 2023; GDFQ, Xu et al., ECCV 2020,
and the programs that their authors released.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax

from adadfq_jax.game import losses

KL_REDUCTIONS = ("elements", "batch")

# Takes z_P (B, C), z_Q (B, C), y (B,), H' (B,) and the fields of `config.game`.
GeneratorLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
# Takes the same arguments without H'.
StudentLoss = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """The losses and constants of one method.

    Attributes:
      generator_loss: returns (L_G without gamma L_BNS, which the step adds for every method; terms
        to log by name), all scalars.
      student_loss: returns L_Q, a scalar; only its gradient by z_Q is used.
      smallest_student_loss: returns the greatest lower bound of L_Q, from the fields of
        `config.game` and the number of classes C.
      defaults: the value of each field of `fields.Filler.METHOD` where a configuration sets none;
        None for a constant that the losses do not use.
      overrides_recipe: those defaults that a network's recipe (`config/recipes.py`) does not
        replace; a configuration still can.
      needs_labels: whether L_Q uses y. Then Q learns from G's images only, since no other images
        have labels.
    """

    generator_loss: GeneratorLoss
    student_loss: StudentLoss
    smallest_student_loss: Callable[[Any, int], float]
    defaults: Mapping[str, Any]
    overrides_recipe: Mapping[str, Any]
    needs_labels: bool = False


def _adaptive_generator_loss(z_p, z_q, labels, h_prime, constants: Any):
    """L_margin + beta (alpha_ds L_ds + alpha_as L_as)."""
    l_ds = losses.disagreement_loss(z_p, z_q, labels)
    l_as = losses.agreement_loss(z_p, z_q, labels)
    l_margin = losses.margin_loss(h_prime, constants.lambda_l, constants.lambda_u)
    l_bal = constants.alpha_ds * l_ds + constants.alpha_as * l_as
    loss = constants.margin_weight * l_margin + constants.beta * l_bal
    return loss, {"l_ds": l_ds, "l_as": l_as, "l_bal": l_bal, "l_margin": l_margin}


def _adaptive_student_loss(z_p, z_q, labels, constants: Any):
    """L_Q = -T^2 times the mean entropy of softmax((z_P - z_Q) / T)."""
    del labels
    return losses.disagreement_entropy_loss(z_p, z_q, constants.temperature)


def _smallest_adaptive_student_loss(constants: Any, classes: int) -> float:
    """-T^2 log C, where z_P - z_Q is a constant: no entropy of C classes exceeds log C."""
    return -(constants.temperature**2) * math.log(classes)


def _gdfq_generator_loss(z_p, z_q, labels, h_prime, constants: Any):
    """CE(z_P, y): images that the teacher recognises, whatever the student's logits are."""
    del z_q, h_prime
    l_ce = losses.cross_entropy(z_p, labels)
    return l_ce, {"l_ce": l_ce}


def _gdfq_student_loss(z_p, z_q, labels, constants: Any):
    """L_Q = CE(z_Q, y) + T^2 KL(softmax(z_P / T) || softmax(z_Q / T))."""
    distance = losses.distillation_loss(z_p, z_q, constants.temperature)  # mean over B
    if constants.kl_reduction == "elements":
        distance /= z_q.shape[-1]
    return losses.cross_entropy(z_q, labels) + distance


def _smallest_gdfq_student_loss(constants: Any, classes: int) -> float:
    """0, which neither a cross entropy nor a divergence falls below."""
    del constants, classes
    return 0.0


# How the papers of AdaDFQ, AdaSG and GDFQ quantize and train the student.
_PLAIN = {
    "quant.ranges": "minmax",
    "quant.learned_ranges": False,
    "samples.procedural": 0,
    "samples.cutmix": 0.0,
    "student.optimizer": "sgd",
}
_PLUS = {
    "quant.ranges": "least_error",
    "quant.learned_ranges": True,
    "samples.procedural": 2,
    "student.optimizer": "adam",
}
_ADADFQ = _PLAIN | {
    "game.alpha_ds": 0.2,
    "game.alpha_as": 0.1,
    "game.lambda_l": 0.1,
    "game.lambda_u": 0.8,
    "game.gamma": 1.0,
}
_ADASG = _PLAIN | {
    "game.alpha_ds": 0.1,
    "game.alpha_as": 0.1,
    "game.lambda_l": 0.3,
    "game.lambda_u": 0.8,
    "game.gamma": 1.0,
}
_GDFQ = _PLAIN | {
    "game.alpha_ds": None,
    "game.alpha_as": None,
    "game.lambda_l": None,
    "game.lambda_u": None,
    "game.gamma": 0.1,
}
# H' lies in [0, 1], so boundaries 0 and 1 make L_margin 0. Two equal boundaries, here in the middle
# of AdaDFQ's margin, make L_margin pull H' to that one value.
_ABLATIONS = {
    "adadfq_without_l_ds": {"game.alpha_ds": 0.0},
    "adadfq_without_l_as": {"game.alpha_as": 0.0},
    "adadfq_without_margin": {"game.lambda_l": 0.0, "game.lambda_u": 1.0},
    "adadfq_without_l_bns": {"game.gamma": 0.0},
    "adadfq_fixed_lambda": {"game.lambda_l": 0.45, "game.lambda_u": 0.45},
}
# Learned ranges need Adam, so the ablation of Adam leaves them out too.
_PLUS_ABLATIONS = {
    "adadfq_plus_without_least_error": {"quant.ranges": "minmax"},
    "adadfq_plus_without_learned_ranges": {"quant.learned_ranges": False},
    "adadfq_plus_without_procedural": {"samples.procedural": 0},
    "adadfq_plus_without_adam": {"quant.learned_ranges": False, "student.optimizer": "sgd"},
}


def _adaptive(defaults: Mapping[str, Any], overrides_recipe: Mapping[str, Any]) -> Method:
    return Method(
        _adaptive_generator_loss,
        _adaptive_student_loss,
        _smallest_adaptive_student_loss,
        defaults,
        overrides_recipe,
    )


METHODS: dict[str, Method] = {
    "adadfq": _adaptive(_ADADFQ, {}),
    "adasg": _adaptive(_ADASG, _ADASG),
    "gdfq": Method(
        _gdfq_generator_loss,
        _gdfq_student_loss,
        _smallest_gdfq_student_loss,
        _GDFQ,
        _GDFQ | {"game.temperature": 20.0},
        needs_labels=True,
    ),
    "adadfq_plus": _adaptive(_ADADFQ | _PLUS, _PLUS),
}
METHODS |= {name: _adaptive(_ADADFQ | fixed, fixed) for name, fixed in _ABLATIONS.items()}
METHODS |= {
    name: _adaptive(_ADADFQ | _PLUS | fixed, _PLUS | fixed)
    for name, fixed in _PLUS_ABLATIONS.items()
}
