"""The family: what each method makes the two players minimise, and its constants.

All play the same game (`step.py`) and differ in the losses of generator and student alone. To add
a method, write its two losses here and enter it in `METHODS`; its twin goes into `reference/`, and
into the families that `tests/game/test_parity.py` compares.

`adadfq_plus` is AdaDFQ with what keeps more of the teacher at few bits, beyond the paper: four
independent fields (`_PLUS`), each of which a configuration can set alone under any method.

An ablation is a method as well: AdaDFQ with one constant that takes a term away (`_ABLATIONS`), or
its plus without one of its parts.

Sources: AdaDFQ, Qian et al., CVPR 2023; AdaSG, Qian et al., AAAI 2023; GDFQ, Xu et al., ECCV 2020,
and the programs that their authors released.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from adadfq_jax.game import losses

KL_REDUCTIONS = ("elements", "batch")

# Of z_P (B, C), z_Q (B, C), y (B,), H' (B,) and the fields of `config.game`.
GeneratorLoss = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
# Of the same without H'.
StudentLoss = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """One way to play.

    Attributes:
      generator_loss: gives (L_G without gamma L_BNS, which the game adds for all; the terms that
        are worth logging), all scalars.
      student_loss: gives L_Q, a scalar; only its gradient by z_Q is used.
      defaults: what fields are where a configuration leaves them open, all of
        `fields.Filler.METHOD`; None for one that the losses do not have.
      overrides_recipe: those that no network's settings (`config/recipes.py`) change; a
        configuration still can.
      needs_labels: whether L_Q uses y, so that Q can learn from G's images alone.
    """

    generator_loss: GeneratorLoss
    student_loss: StudentLoss
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


def _gdfq_generator_loss(z_p, z_q, labels, h_prime, constants: Any):
    """CE(z_P, y): images that the teacher recognises; the student has no say."""
    del z_q, h_prime
    l_ce = losses.cross_entropy(z_p, labels)
    return l_ce, {"l_ce": l_ce}


def _gdfq_student_loss(z_p, z_q, labels, constants: Any):
    """L_Q = CE(z_Q, y) + T^2 KL(softmax(z_P / T) || softmax(z_Q / T))."""
    distance = losses.distillation_loss(z_p, z_q, constants.temperature)  # mean over B
    if constants.kl_reduction == "elements":
        distance /= z_q.shape[-1]
    return losses.cross_entropy(z_q, labels) + distance


# How all papers of the family quantize, and train the student.
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
# H' lies in [0, 1]: that margin is none. Both boundaries in the middle of AdaDFQ's are a fixed aim.
_ABLATIONS = {
    "adadfq_without_l_ds": {"game.alpha_ds": 0.0},
    "adadfq_without_l_as": {"game.alpha_as": 0.0},
    "adadfq_without_margin": {"game.lambda_l": 0.0, "game.lambda_u": 1.0},
    "adadfq_without_l_bns": {"game.gamma": 0.0},
    "adadfq_fixed_lambda": {"game.lambda_l": 0.45, "game.lambda_u": 0.45},
}
# Of the four parts of `_PLUS`, learned ranges need Adam.
_PLUS_ABLATIONS = {
    "adadfq_plus_without_least_error": {"quant.ranges": "minmax"},
    "adadfq_plus_without_learned_ranges": {"quant.learned_ranges": False},
    "adadfq_plus_without_procedural": {"samples.procedural": 0},
    "adadfq_plus_without_adam": {"quant.learned_ranges": False, "student.optimizer": "sgd"},
}


def _adaptive(defaults: Mapping[str, Any], overrides_recipe: Mapping[str, Any]) -> Method:
    return Method(_adaptive_generator_loss, _adaptive_student_loss, defaults, overrides_recipe)


METHODS: dict[str, Method] = {
    "adadfq": _adaptive(_ADADFQ, {}),
    "adasg": _adaptive(_ADASG, _ADASG),
    "gdfq": Method(
        _gdfq_generator_loss,
        _gdfq_student_loss,
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
