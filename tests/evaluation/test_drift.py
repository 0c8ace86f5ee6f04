"""Drift: a fall of agreement that lasts is told, a fluctuation is not."""

import pytest

from adadfq_jax.evaluation.drift import EVALUATIONS, FALL, find_drift

HIGH, LOW = 0.8, 0.8 - FALL - 0.01


def curve(*agreements):
    return [(100 * (index + 1), agreement) for index, agreement in enumerate(agreements)]


@pytest.mark.parametrize(
    "agreements",
    [
        (),
        (LOW,),
        (LOW,) * EVALUATIONS,  # low from the beginning
        (HIGH, *(LOW,) * (EVALUATIONS - 1)),  # not yet
        (HIGH, *(LOW, HIGH) * EVALUATIONS),  # fluctuates
        (HIGH, *(HIGH - FALL + 0.001,) * 9),  # does not fall far enough
        (HIGH, *(LOW,) * EVALUATIONS, HIGH),  # is over
    ],
)
def test_no_drift(agreements):
    assert find_drift(curve(*agreements)) is None


def test_a_fall_that_lasts_is_drift():
    before = (0.5, HIGH, HIGH - 0.02)
    drift = find_drift(curve(*before, *(LOW,) * EVALUATIONS, LOW - 0.1))
    assert drift.step == 100 * (len(before) + EVALUATIONS)
    assert drift.evaluations == EVALUATIONS + 1
    assert (drift.best_step, drift.best_agreement) == (200, HIGH)
    assert drift.fall == pytest.approx(FALL + 0.11)
    assert (
        f"fallen for {EVALUATIONS + 1} evaluations, by {100 * (FALL + 0.11):.1f} points from its "
        "best (80.0% at step 200): the student is drifting; the healthiest checkpoint is of step 7 "
        in drift.sentence(healthiest_step=7)
    )


def test_a_second_drift_has_its_own_step():
    agreements = (HIGH, *(LOW,) * EVALUATIONS, HIGH, *(LOW,) * EVALUATIONS)
    assert find_drift(curve(*agreements)).step == 100 * len(agreements)
