"""The forms of a BatchNorm's moments, scale and shift that other platforms than CPU get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.ops import moments


@pytest.mark.usefixtures("x64")
def test_one_pass_is_two():
    x = jnp.array(np.random.default_rng(0).normal(3, 2, (4, 5, 6, 7)))
    for got, expected in zip(moments._one_pass(x), moments._two_passes(x), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_one_pass_does_not_cancel_far_from_0():
    """E[x^2] - E[x]^2 would have no correct digit here."""
    random = np.random.default_rng(0)
    x = jnp.array(random.normal(1e4, [1, 1e-2], (64, 8, 8, 2)), jnp.float32)
    exact = np.asarray(x, np.float64)
    mean, variance = moments._one_pass(x)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-7)
    np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-5)
    _, variance = moments._one_pass(jnp.full((8, 4, 4, 2), 0.1))
    np.testing.assert_array_equal(variance, 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sums", [moments._two_sums, moments._sums_at_once])
def test_gradients_of_scale_and_shift(sums, monkeypatch):
    monkeypatch.setattr(moments, "_two_sums", sums)
    random = np.random.default_rng(0)
    x, cotangent = (jnp.array(random.normal(size=(2, 3, 4, 5))) for _ in range(2))
    factor, shift = (jnp.array(random.normal(size=5)) for _ in range(2))
    expected, pull = jax.vjp(lambda x, factor, shift: x * factor + shift, x, factor, shift)
    got, pull_got = jax.vjp(moments.scale_and_shift, x, factor, shift)
    np.testing.assert_array_equal(got, expected)
    for one, other in zip(pull_got(cotangent), pull(cotangent), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_other_platforms_reduce_once():
    def gradients(x, factor, shift):
        return jax.vjp(moments.scale_and_shift, x, factor, shift)[1](x)

    x, factor = jnp.zeros((2, 4, 4, 3)), jnp.zeros(3)
    for function, arguments, on_cpu in (
        (moments.batch_moments, (x,), 2),
        (gradients, (x, factor, factor), 2),
    ):
        traced = jax.jit(function).trace(*arguments)
        counts = {
            platform: traced.lower(lowering_platforms=(platform,))
            .as_text()
            .count("stablehlo.reduce(")
            for platform in ("cpu", "cuda")
        }
        assert counts == {"cpu": on_cpu, "cuda": 1}
