"""Bounds and gradients of the quantizers, for any range and every bit-width."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.quantization import ranges
from adadfq_jax.quantization.codes import affine, encode, fake_quantize, fake_quantize_learned

BITS = range(1, 9)
finite = st.floats(-100, 100, width=32)


def fake_quantize_kernel(kernel, bits):
    return fake_quantize(kernel, *ranges.weight_range(kernel), bits)


def step_size(minimum, maximum, bits):
    return max(maximum - minimum, 1e-8) / (2**bits - 1)


@pytest.mark.parametrize("bits", BITS)
@hypothesis.given(
    minimum=finite,
    width=st.floats(0.0078125, 100, width=32),
    fractions=st.lists(st.floats(0, 1), min_size=8, max_size=8),  # other shapes compile again
)
@hypothesis.settings(
    deadline=None, max_examples=50, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
def test_error_is_at_most_half_a_step_inside_the_range(bits, minimum, width, fractions):
    """In float64, where the bound is not blurred by rounding of the range itself."""
    with jax.enable_x64(True):
        low, high = np.float64(minimum), np.float64(minimum) + width
        x = low + np.array([0.0, 1.0, *fractions]) * (high - low)
        x_hat = fake_quantize(jnp.array(x), low, high, jnp.int32(bits))
        bound = step_size(low, high, bits) / 2
        assert np.abs(np.asarray(x_hat) - x).max() <= bound * (1 + 1e-9) + 1e-12
        codes = np.asarray(encode(jnp.array(x), low, high, jnp.int32(bits)))
        assert codes.min() >= 0
        assert codes.max() <= 2**bits - 1
        np.testing.assert_array_equal(codes, np.round(codes))


@pytest.mark.parametrize("bits", BITS)
def test_at_most_two_to_the_k_values_even_outside_the_range(bits):
    x = jnp.linspace(-3, 3, 5001)
    values = np.unique(fake_quantize(x, jnp.float32(-1), jnp.float32(1.5), bits))
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
    quantized = np.asarray(fake_quantize_kernel(jnp.array(kernel), bits))
    for index in range(2):
        weights, got = kernel[..., index], quantized[..., index]
        bound = step_size(weights.min(), weights.max(), bits) / 2
        assert np.isfinite(got).all()
        assert len(np.unique(got)) <= 2**bits
        assert np.abs(got - weights).max() <= bound + 1e-6 * np.abs(weights).max()


def test_a_range_without_zero_has_its_zero_point_outside_the_codes():
    """Weights in [0.5, 1] at 4 bit: -24 in ONNX's sign, which is -z + codes' smallest (method)."""
    scale, step, zero_point, n = affine(jnp.float32(0.5), jnp.float32(1), jnp.int32(4))
    assert (float(scale), float(zero_point), float(n)) == (30, 15, 15)
    assert float(step) == pytest.approx(1 / 30)
    codes = encode(jnp.float32([0.5, 1]), jnp.float32(0.5), jnp.float32(1), 4)
    np.testing.assert_array_equal(codes, [0, 15])


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize("ends", [(-1, 1), (-3, 0.1), (0.2, 5), (-5, -0.2), (0, 0), (-0.3, 7)])
def test_symmetric_ranges_make_signed_codes(bits, ends):
    ends = [jnp.float32(end) for end in ends]
    low, high = ranges.symmetric_range(*ends, jnp.int32(bits))
    if ends[0] == ends[1] == 0:
        assert low == high == 0
        return
    _, step, zero_point, _ = affine(low, high, jnp.int32(bits))
    assert zero_point == -(2 ** (bits - 1))
    # Of what lies in the range, no code is the one whose negative does not fit.
    codes = encode(jnp.array(ends), low, high, jnp.int32(bits)) + zero_point
    assert np.abs(codes).max() == 2 ** (bits - 1) - 1
    assert float(step) == pytest.approx(max(map(abs, map(float, ends))) / (2 ** (bits - 1) - 1))


def test_straight_through_gradient_is_one_everywhere_and_none_reaches_the_range():
    x = jnp.linspace(-3, 3, 101)
    arguments = (x, jnp.float32(-1), jnp.float32(1))
    gradients = jax.grad(lambda *a: fake_quantize(*a, 3).sum(), (0, 1, 2))(*arguments)
    np.testing.assert_array_equal(gradients[0], np.ones(101))
    assert float(gradients[1]) == float(gradients[2]) == 0
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 4, 8))
    through = jax.grad(lambda kernel: fake_quantize_kernel(kernel, 4).sum())(kernel)
    np.testing.assert_array_equal(through, np.ones(kernel.shape))


def test_bits_are_data():
    """One compiled function serves every bit-width."""
    quantize = jax.jit(fake_quantize)
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
        average = ranges.update_range(average, jnp.float32(5), jnp.int32(updates))
        assert float(average) == pytest.approx(5, rel=1e-6)


def test_range_average_is_the_corrected_moving_average():
    values = np.random.default_rng(0).uniform(1, 2, 40)
    raw, average = 0.0, jnp.float32(0)
    for updates, value in enumerate(values):
        raw = 0.9 * raw + 0.1 * value
        average = ranges.update_range(average, jnp.float32(value), jnp.int32(updates))
        assert float(average) == pytest.approx(raw / (1 - 0.9 ** (updates + 1)), rel=1e-5)


class TestLearnedRange:
    """The gradient of `fake_quantize_learned`, by x and by the range's ends."""

    x = np.random.default_rng(0).normal(1, 1.5, (6, 5, 4))
    ends, bits = (np.float64(-1), np.float64(2.5)), jnp.int32(3)  # seven steps of a half

    def total(self, x, *ends):
        return fake_quantize_learned(x, *ends, self.bits).sum()

    @pytest.mark.usefixtures("x64")
    def test_values_are_those_of_a_frozen_range(self):
        np.testing.assert_array_equal(
            fake_quantize_learned(self.x, *self.ends, self.bits),
            fake_quantize(self.x, *self.ends, self.bits),
        )

    @pytest.mark.usefixtures("x64")
    def test_by_x_it_is_one_inside_and_zero_outside(self):
        gradient = jax.grad(self.total)(self.x, *self.ends)
        inside = (self.x >= self.ends[0]) & (self.x <= self.ends[1])
        np.testing.assert_array_equal(gradient, inside)
        assert 0 < inside.mean() < 1

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("end", [0, 1])
    def test_by_an_end_it_is_that_of_the_rounding_taken_as_constant(self, end):
        """Finite differences of clip(x) + (what the rounding added, in steps) x step."""
        clipped = np.clip(self.x, *self.ends)
        added = (np.asarray(fake_quantize(self.x, *self.ends, self.bits)) - clipped) / 0.5

        def surrogate(change):
            low, high = (value + change * (i == end) for i, value in enumerate(self.ends))
            return np.clip(self.x, low, high) + added * (high - low) / 7

        expected = (surrogate(1e-6) - surrogate(-1e-6)) / 2e-6
        gradients = jax.grad(self.total, argnums=(1, 2))(self.x, *self.ends)
        assert abs(expected.sum()) > 1
        np.testing.assert_allclose(gradients[end], expected.sum(), rtol=1e-6)
        by_channel = [np.full(4, value) for value in self.ends]
        gradients = jax.grad(self.total, argnums=(1, 2))(self.x, *by_channel)
        np.testing.assert_allclose(gradients[end], expected.sum((0, 1)), rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_least_error_of_weights_by_channel(bits, shift):
    """Better than from min to max, also where a channel's range excludes 0."""
    kernel = np.random.default_rng(bits).normal(size=(3, 3, 32, 6)) * np.arange(1, 7) + shift
    ends = ranges.least_error_weight_range(jnp.array(kernel, jnp.float32), bits)
    least, usual = (
        np.square(kernel - fake_quantize(kernel, *pair, bits)).mean((0, 1, 2))
        for pair in (ends, ranges.weight_range(kernel))
    )
    assert ends[0].shape == (6,)
    assert (least <= usual).all()
    assert least.mean() < 0.95 * usual.mean()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_error_is_the_best_of_all_shares(bits):
    x = np.maximum(np.random.default_rng(bits).normal(size=(4, 6, 6, 8)), 0).astype(np.float32)
    x[0, 0, 0, 0] = 6  # an outlier
    minimum, maximum = ranges.least_error_range(jnp.array(x), jnp.int32(bits))
    assert minimum == 0
    assert maximum in 6 * np.float32(ranges._SHARES)

    def error(end):
        return ((x - fake_quantize(x, 0.0, jnp.float32(end), bits)) ** 4).mean()

    best = min(error(6 * share) for share in ranges._SHARES)
    np.testing.assert_allclose(error(maximum), best, rtol=1e-6)
    if bits < 4:
        assert error(maximum) < error(6)


def test_least_error_scales_with_its_tensor():
    x = jnp.abs(jax.random.normal(jax.random.key(0), (4, 8, 8, 4)))
    _, one = ranges.least_error_range(x, jnp.int32(3))
    _, other = ranges.least_error_range(8 * x, jnp.int32(3))
    np.testing.assert_allclose(other, 8 * one, rtol=1e-6)


@pytest.mark.parametrize("shape", [(14, 14, 1024), (7, 7, 1280), (14, 14, 256), (2, 2, 8)])
def test_the_error_is_measured_all_over_an_image(shape):
    """Where a corner is dark, the range is nevertheless that of the rest."""
    x = np.abs(np.random.default_rng(0).normal(size=(4, *shape))).astype(np.float32)
    _, bright = ranges.least_error_range(jnp.array(x), jnp.int32(3))
    x[:, : shape[0] // 2, : shape[1] // 2] *= 0.1
    _, partly = ranges.least_error_range(jnp.array(x), jnp.int32(3))
    assert partly > 0.75 * bright


@pytest.mark.parametrize("rule", ranges.RANGE_RULES)
def test_a_range_does_not_depend_on_how_images_are_spread(rule):
    x = jnp.abs(
        jax.random.normal(jax.random.key(1), (8, 40, 40, 3))
    )  # not all pixels are looked at
    find = functools.partial(ranges.RANGE_RULES[rule], bits=jnp.int32(3))
    spread = jax.vmap(lambda x: find(x, axis_name="data"), axis_name="data")
    for ours, theirs in zip(find(x), spread(x.reshape(4, 2, 40, 40, 3)), strict=True):
        np.testing.assert_array_equal(np.full(4, ours), theirs)
