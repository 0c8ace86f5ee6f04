"""Each method's losses, alone: against plain NumPy, its ablations, and what a run needs of it."""

import jax
import numpy as np
import pytest

from adadfq_jax.config import recipes
from adadfq_jax.config.fields import Filler, default_config, filled_by
from adadfq_jax.game import losses
from adadfq_jax.game.methods import METHODS

C = 10


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    return random.normal(0, 3, (6, C)), random.normal(0, 3, (6, C)), random.integers(0, C, 6)


def rules_of(**fields):
    config = default_config().copy_and_resolve_references()
    config.game.update(fields)
    recipes.fill_in(config, "resnet20_cifar", 32)
    return config.game


def generator_loss(batch, **fields):
    """Returns a method's (L_G without L_BNS, terms) and its gradient by z_P and z_Q."""
    rules = rules_of(**fields)
    z_p, z_q, labels = batch

    def loss(z_p, z_q):
        h_prime = losses.normalized_entropy(z_p, z_q)
        return METHODS[rules.method].generator_loss(z_p, z_q, labels, h_prime, rules)

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(z_p, z_q)


def log_softmax(z):
    return (
        z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1))[:, None]
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_what_it_fixes(method):
    assert set(filled_by(Filler.METHOD)) == METHODS[method].defaults.keys()
    for field, value in METHODS[method].overrides_recipe.items():
        assert METHODS[method].defaults.get(field, value) == value


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", ["adadfq", "adasg"])
@pytest.mark.parametrize(
    ("field", "removed"),
    [
        ("alpha_ds", lambda terms, rules: rules.beta * rules.alpha_ds * terms["l_ds"]),
        ("alpha_as", lambda terms, rules: rules.beta * rules.alpha_as * terms["l_as"]),
        ("beta", lambda terms, rules: rules.beta * terms["l_bal"]),
        ("margin_weight", lambda terms, rules: terms["l_margin"]),
    ],
)
def test_an_ablation_takes_away_its_term_and_nothing_else(batch, method, field, removed):
    (whole, terms), _ = generator_loss(batch, method=method)
    (ablated, still), _ = generator_loss(batch, method=method, **{field: 0.0})
    lost = removed(terms, rules_of(method=method))
    assert lost > 1e-3
    np.testing.assert_allclose(ablated, whole - lost, rtol=1e-12)
    for name in ("l_ds", "l_as", "l_margin"):  # what it would have been is still measured
        assert still[name] == terms[name]


@pytest.mark.usefixtures("x64")
def test_ablations_of_the_margin(batch):
    _, terms = generator_loss(batch)[0]
    (_, none), _ = generator_loss(batch, method="adadfq_without_margin")
    (_, fixed), _ = generator_loss(batch, method="adadfq_fixed_lambda")
    assert terms["l_margin"] > 0
    assert none["l_margin"] == 0
    h_prime = np.asarray(losses.normalized_entropy(*batch[:2]))
    np.testing.assert_allclose(fixed["l_margin"], np.abs(h_prime - 0.45).mean(), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gdfqs_generator_looks_at_the_teacher_alone(batch):
    z_p, _, labels = batch
    (loss, terms), (by_teacher, by_student) = generator_loss(batch, method="gdfq")
    rows = np.arange(len(labels))
    np.testing.assert_allclose(loss, -log_softmax(z_p)[rows, labels].mean(), rtol=1e-12)
    assert terms["l_ce"] == loss
    assert np.abs(by_teacher).max() > 0
    np.testing.assert_array_equal(by_student, np.zeros_like(by_student))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("reduction", "count"), [("elements", 6 * C), ("batch", 6)])
@pytest.mark.parametrize("temperature", [20.0, 3.0])
def test_gdfqs_student(batch, reduction, count, temperature):
    z_p, z_q, labels = batch
    rules = rules_of(method="gdfq", kl_reduction=reduction, temperature=temperature)
    log_p, log_q = log_softmax(z_p / temperature), log_softmax(z_q / temperature)
    distance = (np.exp(log_p) * (log_p - log_q)).sum() / count
    expected = -log_softmax(z_q)[np.arange(6), labels].mean() + temperature**2 * distance
    got = METHODS["gdfq"].student_loss(z_p, z_q, labels, rules)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
