"""The health score against plain NumPy, and what it must not reward."""

import dataclasses

import jax
import numpy as np
import pytest

from adadfq_jax.evaluation import health
from adadfq_jax.evaluation.accuracy import evaluate
from adadfq_jax.evaluation.health import Answers
from adadfq_jax.game.step import Game
from adadfq_jax.models import registry
from adadfq_jax.training.student import student_of
from tests.conftest import SIZE, make_teacher

random = np.random.default_rng(0)
IMAGES = random.normal(size=(37, SIZE, SIZE, 3)).astype(np.float32)
LABELS = random.integers(0, 10, 37)


def disturbed(network):
    """One that often agrees with the network, but not always."""
    params = dict(network.variables["params"])
    head = params["classifier"]
    noise = random.normal(0, 0.3, head["kernel"].shape).astype(np.float32)
    bias = head["bias"] - np.asarray(network(IMAGES)).mean(0) / 2
    params["classifier"] = {"kernel": head["kernel"] + noise, "bias": bias}
    return dataclasses.replace(network, variables=network.variables | {"params": params})


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("together", [16, 37, 64])
def test_answers_of_two_networks(together):
    teacher = make_teacher()
    student = disturbed(teacher)
    answers = health.score(teacher, student, IMAGES, LABELS, 8, together)
    z_p, z_q = (np.asarray(network(IMAGES), np.float64) for network in (teacher, student))
    same = z_p.argmax(-1) == z_q.argmax(-1)
    assert 0 < same.mean() < 1
    assert answers.agreement == pytest.approx(same.mean())
    p = softmax(z_p - z_q)
    entropy = -(p * np.log(p)).sum(-1)[:32].reshape(4, 8)
    least = entropy.min(1, keepdims=True)
    h_prime = ((entropy - least) / (np.log(10) - least)).ravel()
    np.testing.assert_allclose(answers.h_prime, h_prime, atol=1e-4)
    inside = np.mean((h_prime >= 0.1) & (h_prime <= 0.8))
    assert 0 < inside < 1
    assert answers.in_margin == pytest.approx(inside)
    loss = -np.log(softmax(z_q)[np.arange(37), LABELS]).mean()
    assert answers.loss == pytest.approx(loss, rel=1e-5)
    assert sum(answers.histogram()) == 32
    assert answers.histogram()[0] == np.sum(h_prime < 0.04)
    numbers = answers.numbers()
    assert numbers["health"] == pytest.approx(same.mean() * inside / (1 + answers.l_bns))


def test_l_bns_is_the_teachers_distance_from_its_statistics():
    teacher = make_teacher()
    # The stem's convolution is the first layer that a BatchNorm follows.
    x = registry.build("resnet8_cifar", 10).apply(
        teacher.variables, IMAGES, capture_intermediates=True, mutable=["intermediates"]
    )[1]["intermediates"]
    inputs = np.asarray(x["stem_conv"]["__call__"][0], np.float64)
    stored = teacher.variables["batch_stats"]["stem_norm"]
    first = np.mean((inputs.mean((0, 1, 2)) - stored["mean"]) ** 2) + np.mean(
        (inputs.var((0, 1, 2)) - stored["var"]) ** 2
    )
    far = health.score(teacher, teacher, IMAGES + 3, LABELS, 8).l_bns
    near = health.score(teacher, teacher, IMAGES, LABELS, 8).l_bns
    layers = 9  # stem and two a block, with three blocks, and projections where there are any
    assert near > first / layers
    assert far > 2 * near
    halves = [
        health.score(teacher, teacher, part, LABELS[:18], 8).l_bns
        for part in (IMAGES[:18], IMAGES[18:36])
    ]
    assert health.score(teacher, teacher, IMAGES[:36], LABELS[:36], 8, 18).l_bns == pytest.approx(
        np.mean(halves), rel=1e-5
    )


def make_answers(agree, h_prime, l_bns):
    student = np.where(np.arange(10) < agree, 0, 1)
    return Answers(np.arange(10), np.zeros(10, int), student, np.array(h_prime), l_bns, 0.0, 10)


def test_the_score_falls_with_each_of_its_parts():
    usual = make_answers(9, [0.0, 0.5, 0.5, 0.9], 0.5)
    assert usual.health == pytest.approx(0.9 * 0.5 / 1.5)
    assert make_answers(8, [0.0, 0.5, 0.5, 0.9], 0.5).health < usual.health
    assert make_answers(9, [0.0, 0.9, 0.5, 0.9], 0.5).health < usual.health  # too easy
    assert make_answers(9, [0.0, 0.05, 0.5, 0.9], 0.5).health < usual.health  # too hard
    assert make_answers(9, [0.0, 0.5, 0.5, 0.9], 0.6).health < usual.health  # unlike the data
    assert 0 <= usual.health <= 1


def test_counts_by_class():
    answers = Answers(
        np.array([0, 0, 2]), np.array([0, 1, 2]), np.array([0, 1, 1]), np.zeros(0), 0.0, 0.0, 3
    )
    images, recognised, agreed = answers.per_class()
    assert (images.tolist(), recognised.tolist(), agreed.tolist()) == (
        [2, 0, 1],
        [1, 0, 1],
        [2, 0, 0],
    )


def test_networks_go_to_the_device_once(small_config):
    """Not with every batch of images: at 224 pixels that would be gigabytes of a measurement."""
    teacher = make_teacher()
    game = Game.create(small_config, teacher.module, SIZE)
    host = jax.tree.map(np.asarray, game.init(small_config, teacher.variables))
    student = student_of(game, host, teacher)
    images, _ = student.draw(24)
    for network in (teacher, student):
        assert network.on_device is network.on_device
    with jax.transfer_guard("disallow"):
        health._run_both(teacher, student, images, at_a_time=8)
        evaluate(student, (np.zeros((12, SIZE, SIZE, 3), np.uint8), np.zeros(12, np.int32)), 4)
