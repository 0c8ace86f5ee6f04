"""What a teacher's own statistics say of how it was read, and teachers that teach nothing."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from adadfq_jax.assets import DIGITS_TEACHER
from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.evaluation.statistics import (
    LARGEST_USUAL_DISTANCE,
    StatisticsCheck,
    check_statistics,
)
from adadfq_jax.game.state import Phase
from adadfq_jax.teachers.convert import summary
from adadfq_jax.teachers.load import load_teacher
from adadfq_jax.teachers.normalisation import NORMALISATIONS
from adadfq_jax.teachers.random_weights import random_teacher
from adadfq_jax.training import quantize
from adadfq_jax.training.watch import Watch
from tests.conftest import make_teacher
from tests.exporting.test_export import SHARED


@pytest.fixture(scope="module")
def digits():
    return load_teacher(DIGITS_TEACHER)


def test_a_wrong_normalisation_is_far_from_the_statistics(digits):
    right = check_statistics(digits).distance
    assert right == pytest.approx(0.119, abs=0.005)  # a false alarm: grey digits are no photographs
    assert check_statistics(digits).distance == right
    in_255 = dataclasses.replace(
        digits, mean=tuple(255 * x for x in digits.mean), std=tuple(255 * x for x in digits.std)
    )
    assert check_statistics(in_255).distance > 4 * right
    text = check_statistics(in_255).to_text()
    assert text in summary(in_255, text)


def test_what_is_usual_is_said_without_a_warning():
    assert not StatisticsCheck(LARGEST_USUAL_DISTANCE).unusual
    assert "0.035 nats" in StatisticsCheck(0.0351).to_text()
    assert "warning" not in StatisticsCheck(0.0351).to_text()
    for distance in (0.1001, float("inf"), float("nan")):
        assert StatisticsCheck(distance).to_text().startswith("warning: ")


REAL = SHARED / "teachers" / "resnet20_cifar10.th"


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason="no real checkpoint at hand")
@pytest.mark.parametrize(
    ("architecture", "normalisation", "distance"),
    [
        ("resnet20_cifar", NORMALISATIONS["imagenet"], 0.034),
        ("resnet20_cifar", NORMALISATIONS["cifar10"], 0.036),
        ("resnet20_cifar", ((0.5,) * 3, (0.5,) * 3), 0.160),
        ("resnet20_cifar_padend", NORMALISATIONS["imagenet"], 0.110),
    ],
)
def test_the_real_network(architecture, normalisation, distance):
    mean, std = normalisation
    teacher = load_teacher(REAL, architecture, mean=mean, std=std)
    check = check_statistics(teacher)
    assert check.distance == pytest.approx(distance, abs=0.005)
    assert check.unusual == (distance > 0.1)


# ---- Nothing to learn -----------------------------------------------------------------------


def test_one_class_is_refused():
    with pytest.raises(TeacherError, match="give a network of two logits or more"):
        make_teacher(classes=1)
    with pytest.raises(TeacherError, match="give a network of two logits or more"):
        random_teacher("resnet8_cifar", classes=1)


def changed(teacher, change):
    head = jax.tree.map(change, teacher.variables["params"]["classifier"])
    params = teacher.variables["params"] | {"classifier": head}
    return dataclasses.replace(teacher, variables=teacher.variables | {"params": params})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.zeros_like, "gives every image the same logits"),
        (lambda leaf: leaf if leaf.ndim == 1 else 1e-9 * leaf, "gives every image the same logits"),
        (lambda leaf: leaf * np.float32(np.nan), "infinite or not a number"),
    ],
)
def test_logits_without_images_are_found_before_the_game(small_config, change, message, tmp_path):
    teacher = changed(make_teacher(), change)
    with pytest.raises(TeacherError, match=message):
        quantize.quantize(small_config, teacher, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("phase", "player"), [(Phase.WARMUP, "generator"), (Phase.PLAY, "student")]
)
def test_a_player_that_stands_still_ends_the_game(small_config, phase, player):
    record = types.SimpleNamespace(
        bns_sum=1.0, bns_steps=1, bns_high=0, seconds=0.0, calibrated={}, widths=[]
    )
    small_config.teacher.classes = 10
    watch = Watch(small_config, record, None, None, 0, 0.0)
    values = {"l_bns": 1.0, "generator_gradient": 1.0, "student_gradient": 1.0}
    still = values | {f"{player}_gradient": 0.0}
    for step in range(19):
        watch._check(step, phase, still)
    watch._check(19, phase, values)
    for step in range(20, 39):
        watch._check(step, phase, still)
    with pytest.raises(ConfigError, match=rf"the {player}'s gradient was exactly 0 in the 20 st"):
        watch._check(39, phase, still)
