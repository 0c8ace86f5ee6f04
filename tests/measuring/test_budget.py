"""How long parts will take: as guessed, and as they were measured to take."""

import pytest

from adadfq_jax.measuring.budget import seconds_needed
from adadfq_jax.measuring.parts import Kind, Part

SPEED = Part("speed_16", Kind.SPEED, "speed", (), seconds=100)
OTHER = Part("other", Kind.SPEED, "another", (), seconds=40)
RUN = Part("w3a3", Kind.RUN, "a run", (), seconds=50, steps=1000)
PLUS = Part("plus", Kind.RUN, "the plus", (), seconds=50, steps=1000, cost=2.0)
PARTS = (SPEED, OTHER, RUN, PLUS)


def needed(part, platform="gpu", **entries):
    return seconds_needed(part, PARTS, entries, platform)


def speed(seconds, step):
    result = {"phases": {"play": {"median_s": step}}}
    return {"status": "done", "seconds": seconds, "result": result}


def test_before_anything_is_measured_it_is_guessed():
    assert needed(OTHER) == 40
    assert needed(RUN) == pytest.approx(50 + 1000 * 0.004)
    assert needed(PLUS) == pytest.approx(50 + 2 * 1000 * 0.004)
    assert needed(RUN, "cpu") > 3 * needed(RUN)


def test_a_slow_machine_is_slow_in_what_follows():
    slow = speed(seconds=300, step=0.5)
    assert needed(OTHER, speed_16=slow) == 3 * 40
    assert needed(RUN, speed_16=slow) == 3 * 50 + 1000 * 0.5
    assert needed(PLUS, speed_16=slow) == 3 * 50 + 2 * 1000 * 0.5
    # What did not end, or failed, says nothing.
    assert needed(OTHER, speed_16={"status": "cut", "seconds": 300}) == 40


def test_the_steps_of_a_run_are_better_known_than_those_timed_alone():
    timed = speed(seconds=100, step=0.5)
    other = {"status": "done", "seconds": 9, "steps": 1000, "steps_per_second": 10.0}
    assert needed(RUN, speed_16=timed, plus=other) == pytest.approx(50 + 1000 * 0.05)
    assert needed(PLUS, speed_16=timed, w3a3=other) == pytest.approx(50 + 1000 * 0.2)


def test_of_a_run_that_was_cut_the_rest_is_left():
    cut = {"status": "cut", "seconds": 60, "steps": 900, "steps_per_second": 20.0}
    assert needed(RUN, w3a3=cut) == pytest.approx(50 + 100 * 0.05)
    # It was cut before its first step of play.
    early = cut | {"steps": 0, "steps_per_second": None}
    assert needed(RUN, w3a3=early) == pytest.approx(50 + 1000 * 0.004)


def test_a_part_that_was_cut_takes_longer_than_it_had():
    assert needed(OTHER, other={"status": "cut", "seconds": 200}) == 300
    assert needed(OTHER, other={"status": "failed", "seconds": 200}) == 40
