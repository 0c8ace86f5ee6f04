"""The fast gradient of the max-pool is the max-pool's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.ops.pooling import max_pool_3x3


def plain(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


def images(shape):
    """Fake-quantized ReLUs: most windows have several equal maxima, and many of them are 0."""
    return np.maximum(np.random.default_rng(0).integers(-3, 4, size=shape), 0).astype(float)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 2)])
@pytest.mark.parametrize("sign", [1, -1])  # where all are negative, padding is no maximum
def test_value_and_gradient(size, sign):
    x = jnp.array(sign * images((2, *size, 3)))
    expected, pull_expected = jax.vjp(plain, x)
    value, pull = jax.vjp(max_pool_3x3, x)
    np.testing.assert_array_equal(value, expected)
    cotangent = jnp.array(np.random.default_rng(1).normal(size=value.shape))
    np.testing.assert_allclose(pull(cotangent)[0], pull_expected(cotangent)[0], atol=1e-15)


def test_each_window_gives_its_gradient_to_one_pixel_even_where_x_is_computed_anew():
    """A loss of no pixel's gradient would not show in any value, so it is counted."""

    def pooled(x):
        return max_pool_3x3(jax.nn.relu(x * 1.1 + 0.3) * 0.7).sum()

    x = jnp.array(np.random.default_rng(0).normal(size=(4, 32, 32, 8)), jnp.float32)
    through = jax.jit(jax.grad(pooled))(x)
    positive = plain(jax.nn.relu(x * 1.1 + 0.3)) > 0
    np.testing.assert_allclose(through.sum(), 0.77 * positive.sum(), rtol=1e-5)


def test_other_platforms_get_their_own_gradient():
    x = jnp.zeros((1, 8, 8, 3))
    for platform, own in (("cpu", False), ("cuda", True), ("tpu", True)):
        lowered = jax.jit(jax.grad(lambda x: max_pool_3x3(x).sum())).trace(x)
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        assert ("select_and_scatter" in text) == own
