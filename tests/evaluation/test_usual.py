"""What agreement is usual: told where enough runs stand behind it, and only there."""

import re

import pytest

from adadfq_jax.evaluation import usual
from adadfq_jax.evaluation.usual import MEASURED, MeasuredRun, what_is_usual
from tests import ROOT
from tests.conftest import make_result


@pytest.fixture
def runs(monkeypatch):
    """Five runs at w4a4, four at w3a3."""
    measured = [
        *(MeasuredRun("a net", "w4a4", 0.6 + place / 100, 0.3, 0.97) for place in range(4)),
        MeasuredRun("another", "w4a4", 0.8, None, 0.99),
        *(MeasuredRun("a net", "w3a3", 0.6, 0.3, 0.97) for _ in range(4)),
        MeasuredRun("a net", "w2a2", 0.6, 0.3, 0.3),
        *(MeasuredRun("a net", "w1a1", 0.6, 0.3, 0.3) for _ in range(5)),
    ]
    monkeypatch.setattr(usual, "MEASURED", measured)


def test_a_range_and_what_stands_behind_it(runs):
    said = what_is_usual("w4a4", 0.7)
    assert said == (
        "Agreement of 60 to 80 % on generated images is usual at w4a4 (5 runs of 2 teachers, a net "
        "and another, which kept 97 to 99 % of the teacher's top-1): generated images are harder "
        "than real ones."
    )
    assert what_is_usual("w4a4", 0.5).endswith(" ones. This run's 50 % is below that.")
    assert what_is_usual("w4a4", 0.9).endswith(" ones. This run's 90 % is above that.")
    said = what_is_usual("w1a1", 0.6)  # no student of these kept more than it agrees
    assert "harder" not in said
    assert "(health 0.30 to 0.30)" in said


def test_no_range_where_too_few_were_measured(runs):
    assert what_is_usual("w3a3", 0.7) == (
        "What agreement is usual at w3a3 is not known: 4 runs were measured, and 5 are needed."
    )
    assert "1 run was measured" in what_is_usual("w2a2", 0.7)
    assert "no runs were measured" in what_is_usual("w8a8", 0.7)


def test_the_end_of_a_run_says_it(runs):
    assert make_result(agreement=0.7).to_text().endswith("harder than real ones.")


def test_the_runs_are_those_of_the_results():
    """Each row of the table in RESULTS.md is one of the package's, and the other way round."""
    text = (ROOT / "configs" / "RESULTS.md").read_text()
    section = text.partition("## What agreement and health usually mean\n")[2].partition("\n## ")[0]
    rows = re.findall(
        r"^\| (ResNet[^|]*) \| (w\da\d) \|[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|", section, re.M
    )
    told = [tuple(cell.strip() for cell in row) for row in rows]
    held = [
        (
            run.teacher,
            run.bits,
            f"{100 * run.agreement:.1f}",
            "" if run.health is None else f"{run.health:.3f}",
            f"{100 * run.kept:.1f}",
        )
        for run in MEASURED
    ]
    assert sorted(told) == sorted(held)
    assert len(told) >= 5
