"""The losses against plain NumPy, and where they would be 0/0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.game import losses

C = 10


@pytest.fixture
def logits():
    random = np.random.default_rng(0)
    return random.normal(0, 3, (6, C)), random.normal(0, 3, (6, C)), random.integers(0, C, 6)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def entropy(p):
    return -(p * np.log(p)).sum(-1)


@pytest.mark.usefixtures("x64")
def test_terms_are_their_definitions(logits):
    z_p, z_q, y = logits
    h = entropy(softmax(z_p - z_q))
    normalized = (h - h.min()) / (np.log(C) - h.min())
    rows = np.arange(len(y))
    expected = {
        "h": (losses.normalized_entropy(z_p, z_q), normalized),
        "l_ds": (
            losses.disagreement_loss(z_p, z_q, y),
            -np.log(softmax(z_p - z_q)[rows, y]).mean(),
        ),
        "l_as": (losses.agreement_loss(z_p, z_q, y), -np.log(softmax(z_p + z_q)[rows, y]).mean()),
        "margin": (
            losses.margin_loss(normalized, 0.3, 0.6),
            np.maximum(0.3 - normalized, 0).mean() + np.maximum(normalized - 0.6, 0).mean(),
        ),
        "l_q": (
            losses.disagreement_entropy_loss(z_p, z_q, 20.0),
            -400 * entropy(softmax((z_p - z_q) / 20)).mean(),
        ),
    }
    for name, (got, want) in expected.items():
        np.testing.assert_allclose(got, want, rtol=1e-12, err_msg=name)


def test_statistics_loss_averages_over_layers_of_different_width():
    batch = [(jnp.ones(2), jnp.ones(2)), (jnp.zeros(4), 3 * jnp.ones(4))]
    stored = [(jnp.zeros(2), jnp.ones(2)), (jnp.zeros(4), jnp.ones(4))]
    assert float(losses.batch_norm_statistics_loss(batch, stored)) == pytest.approx((1 + 4) / 2)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_h_prime_is_finite_where_teacher_and_student_agree(shift):
    """z_P = z_Q (or up to a constant) makes every H(p_ds) the largest: 0/0 without a floor."""
    z = jax.random.normal(jax.random.key(0), (6, C))
    value, gradient = jax.value_and_grad(lambda z_q: losses.normalized_entropy(z, z_q).sum())(
        z + shift
    )
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_h_prime_passes_a_gradient_through_the_smallest_entropy(logits):
    z_p, z_q, _ = logits
    h = np.asarray(losses.entropy(z_p - z_q))
    gradient = jax.grad(lambda z: losses.normalized_entropy(z_p, z)[(h.argmin() + 1) % 6])(z_q)
    assert np.abs(gradient[h.argmin()]).max() > 0


def test_student_loss_is_smallest_where_logits_differ_by_a_constant(logits):
    z_p, z_q, _ = logits
    best = losses.disagreement_entropy_loss(z_p, z_p + 3.0, 20.0)
    assert float(best) == pytest.approx(-400 * np.log(C), rel=1e-5)
    assert float(losses.disagreement_entropy_loss(z_p, z_q, 20.0)) > float(best)
