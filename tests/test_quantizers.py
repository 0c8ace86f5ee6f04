"""Bounds and gradients of the quantizers, for any range and every bit-width."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax import quantizers

BITS = range(1, 9)
finite = st.floats(-100, 100, width=32)


def step_size(minimum, maximum, bits):
    return max(maximum - minimum, 1e-8) / (2**bits - 1)


@pytest.mark.parametrize("bits", BITS)
@hypothesis.given(
    minimum=finite, width=st.floats(0.0078125, 100, width=32), fractions=st.lists(st.floats(0, 1))
)
@hypothesis.settings(
    deadline=None, max_examples=50, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
def test_error_is_at_most_half_a_step_inside_the_range(bits, minimum, width, fractions):
    """In float64, where the bound is not blurred by rounding of the range itself."""
    with jax.enable_x64(True):
        low, high = np.float64(minimum), np.float64(minimum) + width
        x = low + np.array([0.0, 1.0, *fractions]) * (high - low)
        x_hat = quantizers.fake_quantize(jnp.array(x), low, high, jnp.int32(bits))
        bound = step_size(low, high, bits) / 2
        assert np.abs(np.asarray(x_hat) - x).max() <= bound * (1 + 1e-9) + 1e-12
        codes = np.asarray(quantizers.encode(jnp.array(x), low, high, jnp.int32(bits)))
        assert codes.min() >= 0
        assert codes.max() <= 2**bits - 1
        np.testing.assert_array_equal(codes, np.round(codes))


@pytest.mark.parametrize("bits", BITS)
def test_at_most_two_to_the_k_values_even_outside_the_range(bits):
    x = jnp.linspace(-3, 3, 5001)
    values = np.unique(quantizers.fake_quantize(x, jnp.float32(-1), jnp.float32(1.5), bits))
    assert len(values) == 2**bits
    step = 2.5 / (2**bits - 1)
    assert values.min() == pytest.approx(-1, abs=step / 2 + 1e-6)
    assert values.max() == pytest.approx(1.5, abs=step / 2 + 1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    "channel",
    [
        np.zeros(9),
        np.full(9, 0.37),
        np.full(9, -2.5),
        np.linspace(0.5, 1, 9),
        np.linspace(-1, -0.5, 9),
        np.linspace(-1, 2, 9),
    ],
    ids=["zero", "constant", "negative constant", "positive", "negative", "mixed"],
)
def test_weights_of_one_channel(bits, channel):
    """One range per output channel; also where it excludes 0, or is a single value."""
    other = np.linspace(-50, 50, 9)
    kernel = np.stack([channel, other], -1).reshape(3, 3, 1, 2).astype(np.float32)
    quantized = np.asarray(quantizers.fake_quantize_weight(jnp.array(kernel), bits))
    for index in range(2):
        weights, got = kernel[..., index], quantized[..., index]
        bound = step_size(weights.min(), weights.max(), bits) / 2
        assert np.isfinite(got).all()
        assert len(np.unique(got)) <= 2**bits
        assert np.abs(got - weights).max() <= bound + 1e-6 * np.abs(weights).max()


def test_a_range_without_zero_has_its_zero_point_outside_the_codes():
    """Weights in [0.5, 1] at 4 bit: -24 in ONNX's sign, which is -z + codes' smallest (method)."""
    scale, step, zero_point, n = quantizers.affine(jnp.float32(0.5), jnp.float32(1), jnp.int32(4))
    assert (float(scale), float(zero_point), float(n)) == (30, 15, 15)
    assert float(step) == pytest.approx(1 / 30)
    codes = quantizers.encode(jnp.float32([0.5, 1]), jnp.float32(0.5), jnp.float32(1), 4)
    np.testing.assert_array_equal(codes, [0, 15])


def test_straight_through_gradient_is_one_everywhere_and_none_reaches_the_range():
    x = jnp.linspace(-3, 3, 101)
    arguments = (x, jnp.float32(-1), jnp.float32(1))
    gradients = jax.grad(lambda *a: quantizers.fake_quantize(*a, 3).sum(), (0, 1, 2))(*arguments)
    np.testing.assert_array_equal(gradients[0], np.ones(101))
    assert float(gradients[1]) == float(gradients[2]) == 0
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    through = jax.grad(lambda kernel: quantizers.fake_quantize_weight(kernel, 4).sum())(kernel)
    np.testing.assert_array_equal(through, np.ones(kernel.shape))


def test_bits_are_data():
    """One compiled function serves every bit-width."""
    quantize = jax.jit(quantizers.fake_quantize)
    x = jnp.linspace(0, 1, 1000)
    counts = [
        len(np.unique(quantize(x, jnp.float32(0), jnp.float32(1), jnp.int32(bits))))
        for bits in BITS
    ]
    assert counts == [2**bits for bits in BITS]
    assert quantize._cache_size() == 1


def test_range_average_is_corrected_once():
    """A constant input gives its own value from the first update on."""
    average = jnp.float32(0)
    for updates in range(30):
        average = quantizers.update_range(average, jnp.float32(5), jnp.int32(updates))
        assert float(average) == pytest.approx(5, rel=1e-6)


def test_range_average_is_the_corrected_moving_average():
    values = np.random.default_rng(0).uniform(1, 2, 40)
    raw, average = 0.0, jnp.float32(0)
    for updates, value in enumerate(values):
        raw = 0.9 * raw + 0.1 * value
        average = quantizers.update_range(average, jnp.float32(value), jnp.int32(updates))
        assert float(average) == pytest.approx(raw / (1 - 0.9 ** (updates + 1)), rel=1e-5)
