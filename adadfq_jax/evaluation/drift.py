"""Drift: a student that comes apart while it is trained, seen without data.

Generator and student can leave the images on which agreement says something about accuracy: then
the student gets worse from step to step, and its losses do not tell. What tells is that agreement
on held-out generated images, having risen, falls and stays low.
"""

import dataclasses
from collections.abc import Sequence

# Chosen on other runs than those that it has to find: configs/RESULTS.md, "Drift".
EVALUATIONS = 3  # in a row, since one evaluation fluctuates by a few points
FALL = 0.06  # of agreement, from its highest value


@dataclasses.dataclass(frozen=True)
class Drift:
    """A fall of agreement that has lasted for `EVALUATIONS` evaluations or more.

    Attributes:
      step: step of the evaluation at which it was plain.
      evaluations: how many in a row lie below, the newest included.
      best_agreement, best_step: the highest agreement before, and its step.
      agreement: of the newest evaluation.
    """

    step: int
    evaluations: int
    best_agreement: float
    best_step: int
    agreement: float

    @property
    def fall(self) -> float:
        """How far the newest agreement lies below the best."""
        return self.best_agreement - self.agreement

    def sentence(self, healthiest_step: int) -> str:
        """Returns what is seen and what can be done about it.

        Args:
          healthiest_step: step of the evaluation of the highest health.
        """
        return (
            f"agreement on generated images has fallen for {self.evaluations} evaluations, by "
            f"{100 * self.fall:.1f} points from its best ({self.best_agreement:.1%} at step "
            f"{self.best_step}): the student is drifting; the healthiest checkpoint is of step "
            f"{healthiest_step} (--checkpoint=best)."
        )


def find_drift(evaluations: Sequence[tuple[int, float]]) -> Drift | None:
    """Tells whether a run's newest student is drifting.

    Args:
      evaluations: (step, agreement) of each evaluation since the student first learned, in order.

    Returns:
      The drift, or None where the newest evaluations do not lie far enough below an earlier one.
    """
    below, began, best_step, best = 0, 0, 0, -1.0
    for step, agreement in evaluations:
        if agreement > best:
            best_step, best = step, agreement
        below = below + 1 if best - agreement >= FALL else 0
        if below == EVALUATIONS:
            began = step
    if below < EVALUATIONS:
        return None
    return Drift(began, below, best, best_step, evaluations[-1][1])
