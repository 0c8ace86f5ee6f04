"""What a person sees of a run."""

import math
import re

import numpy as np
import pytest

from adadfq_jax.config.fields import default_config
from adadfq_jax.game import losses
from adadfq_jax.game.methods import METHODS
from adadfq_jax.training import progress as progress_module
from adadfq_jax.training.progress import Progress
from adadfq_jax.training.words import legend, phase_ends


def test_paths_are_shown_as_they_are(capsys):
    """Brackets would be colours to rich, or an error."""
    Progress(10).say("a run in runs/[seed]/x[/a]")
    assert "a run in runs/[seed]/x[/a]" in capsys.readouterr().err


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_told_by_phase_and_moves_between_steps(clock):
    progress = Progress(1000, phases=[("calibrate", 400), ("play", 1000)])
    assert progress.pace() == ""  # no speed is known, and 0.0/s would be none
    for step in range(101):
        progress.advance(step, "calibrate")
        clock[0] += 0.5
    assert progress.pace() == "2.0 steps/s, 2:30 left in this phase, 7:30 in all"
    clock[0] += 3
    assert progress.pace() == "2.0 steps/s, 2:26 left in this phase, 7:26 in all"
    # Steps of the next phase are as fast as they are.
    progress.advance(401, "play")
    assert progress.pace() == ""
    clock[0] += 1
    progress.advance(402, "play")
    assert progress.pace() == "1.0 steps/s, 9:58 left"


def test_what_takes_time_without_steps_is_told_with_its_seconds(clock, capsys):
    progress = Progress(10)
    with progress.busy("compiling program 1 of 2", 40.0, told=True):
        assert "compiling program 1 of 2 (about 40 s)\n" in capsys.readouterr().err
        clock[0] += 12
        assert progress.pace() == "12 s of about 40 s"
    with progress.busy("measuring the student"):
        clock[0] += 3
        assert progress.pace() == "3 s"
    assert (progress.pace(), capsys.readouterr().err) == ("", "")


def test_lines_where_there_is_no_terminal(clock, capsys):
    progress = Progress(100, phases=[("calibrate", 40), ("play", 100)])
    progress.update(1, "calibrate", {"l_q": 3.25})
    assert capsys.readouterr().err == "calibrate 1/100  L_Q 3.25\n"  # no speed is known yet
    for step in range(2, 34):
        progress.advance(step, "calibrate")
        clock[0] += 0.5
    progress.update(33, "calibrate", {"l_q": 3.0})
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "calibrate 33/100  2.0 steps/s, 0:03 left in this phase, 0:33 in all  L_Q 3.00"


def test_phases_that_a_run_has():
    config = default_config()
    assert phase_ends(config) == [("calibrate", 800), ("play", 80000)]
    config.warmup_epochs, config.epochs = 6, 6
    assert phase_ends(config) == [("calibrate", 800), ("warmup", 1200)]


@pytest.mark.parametrize("method", ["adadfq", "gdfq"])
def test_the_smallest_loss_of_a_student_is_that_of_the_teacher(method):
    """Which no logits pass, and the student comes near to whose logits are the teacher's."""
    random = np.random.default_rng(0)
    constants = default_config().copy_and_resolve_references().game
    z_p, labels = 40 * np.eye(10, dtype=np.float32), np.arange(10)
    smallest = METHODS[method].smallest_student_loss(constants, 10)
    loss = METHODS[method].student_loss
    assert float(loss(z_p, z_p, labels, constants)) == pytest.approx(smallest, abs=1e-3)
    for scale in (0.1, 1, 100):
        z_q = (z_p + scale * random.normal(size=z_p.shape)).astype(np.float32)
        assert float(loss(z_p, z_q, labels, constants)) >= smallest - 1e-3
    if method == "adadfq":
        assert smallest == -400 * math.log(10)
        assert losses.entropy(np.zeros((1, 10))).item() == pytest.approx(math.log(10))


def test_the_numbers_are_explained():
    config = default_config()
    config.teacher.classes = 10
    text = legend(config)
    for word in ("L_G", "BNS", "L_Q", "H'", "agree"):
        assert re.search(rf"\b{word}", text)
    assert "-921.0" in text
