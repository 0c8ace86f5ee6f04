"""The fast forms of 3x3 and depthwise convolutions are convolutions, and so are their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.ops import convolutions


def plain(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


# Channels that are taken 4, 2 and 1 pixels at a time; the first width divides by 4, the second not.
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 5, 8), (1, 3, 5)])
@pytest.mark.parametrize("channels", [(3, 16), (16, 3), (16, 16), (16, 32), (40, 3), (1, 1)])
def test_value_and_gradients(shape, channels):
    random = np.random.default_rng(0)
    x = jnp.array(random.normal(size=(*shape, channels[0])))
    kernel = jnp.array(random.normal(size=(3, 3, *channels)))
    expected, pull_expected = jax.vjp(plain, x, kernel)
    value, pull = jax.vjp(convolutions.convolution, x, kernel)
    np.testing.assert_allclose(value, expected, atol=1e-12)
    cotangent = jnp.array(random.normal(size=value.shape))
    for gradient, wanted in zip(pull(cotangent), pull_expected(cotangent), strict=True):
        np.testing.assert_allclose(gradient, wanted, atol=1e-11)


@pytest.mark.usefixtures("x64")
def test_under_vmap_over_kernels():
    random = np.random.default_rng(0)
    x = jnp.array(random.normal(size=(2, 4, 4, 3)))
    kernels = jnp.array(random.normal(size=(3, 3, 3, 3, 16)))
    together = jax.vmap(convolutions.convolution, (None, 0))(x, kernels)
    alone = jnp.stack([convolutions.convolution(x, kernel) for kernel in kernels])
    np.testing.assert_allclose(together, alone, atol=1e-12)


def test_other_platforms_get_one_plain_convolution():
    """Several pixels at a time cost more multiplications, for which only CPU has a reason."""
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 16))
    lowered = {
        platform: jax.jit(convolutions.convolution)
        .trace(x, kernel)
        .lower(lowering_platforms=(platform,))
        .as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "3x6x3x64" in lowered["cpu"]
    for platform in ("cuda", "tpu"):
        assert "3x6x3x64" not in lowered[platform]
        assert lowered[platform].count("stablehlo.convolution") == 1


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 5, 8, 3, 4), (1, 4, 4, 4, 2)])
def test_all_phases_in_one_convolution(shape):
    """What other platforms than CPU get, compared with one convolution for each phase."""
    random = np.random.default_rng(0)
    *images, outputs = shape
    x = jnp.array(random.normal(size=images))
    kernel = jnp.array(random.normal(size=(3, 3, images[-1], outputs)))
    value = convolutions._all_phases(x, kernel)
    np.testing.assert_allclose(value, convolutions._by_phases(x, kernel), atol=1e-12)
    cotangent = jnp.array(random.normal(size=value.shape))
    for gradient, wanted in zip(
        convolutions._pull_all_phases(x, kernel, cotangent),
        convolutions._pull_by_phases(x, kernel, cotangent),
        strict=True,
    ):
        np.testing.assert_allclose(gradient, wanted, atol=1e-11)


# Kernel, strides, padding, dilation, copies of each channel.
DEPTHWISE = [
    ((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), 1),
    ((5, 5), (2, 2), ((2, 2), (2, 2)), (1, 1), 1),
    ((3, 5), (2, 1), ((1, 0), (2, 3)), (2, 1), 1),
    ((3, 3), (1, 2), ((1, 1), (1, 1)), (1, 2), 3),
    ((8, 8), (1, 1), ((4, 4), (4, 4)), (1, 1), 1),
]


def grouped(x, kernel, strides, padding, dilation):
    return jax.lax.conv_general_dilated(
        *(x, kernel, strides, padding),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("sides", "strides", "padding", "dilation", "copies"), DEPTHWISE)
def test_depthwise_value_and_gradients(sides, strides, padding, dilation, copies):
    random = np.random.default_rng(0)
    x = jnp.array(random.normal(size=(2, 9, 8, 6)))
    kernel = jnp.array(random.normal(size=(*sides, 1, 6 * copies)))
    geometry = (strides, padding, dilation)
    expected, pull_expected = jax.vjp(lambda *both: grouped(*both, *geometry), x, kernel)
    value, pull = jax.vjp(
        lambda *both: convolutions.depthwise_convolution(*both, *geometry), x, kernel
    )
    np.testing.assert_allclose(value, expected, atol=1e-12)
    cotangent = jnp.array(random.normal(size=value.shape))
    for gradient, wanted in zip(pull(cotangent), pull_expected(cotangent), strict=True):
        assert gradient.dtype == wanted.dtype
        np.testing.assert_allclose(gradient, wanted, atol=1e-11)


def test_depthwise_in_bfloat16_sums_in_float32():
    random = np.random.default_rng(0)
    x = jnp.array(random.normal(size=(2, 9, 8, 6)), jnp.bfloat16)
    kernel = jnp.array(random.normal(size=(5, 5, 1, 6)), jnp.bfloat16)
    geometry = ((1, 1), ((2, 2), (2, 2)), (1, 1))
    value, pull = jax.vjp(
        lambda *both: convolutions.depthwise_convolution(*both, *geometry), x, kernel
    )
    wide = [array.astype(jnp.float32) for array in (x, kernel)]
    expected, pull_expected = jax.vjp(lambda *both: grouped(*both, *geometry), *wide)
    np.testing.assert_array_equal(value, expected.astype(jnp.bfloat16))
    cotangent = jnp.ones_like(value)
    for gradient, wanted in zip(
        pull(cotangent), pull_expected(cotangent.astype(jnp.float32)), strict=True
    ):
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(gradient.astype(jnp.float32), wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("platform", "convolution_count"), [("cpu", 0), ("cuda", 1), ("tpu", 1)])
def test_depthwise_is_one_grouped_convolution_but_on_cpu(platform, convolution_count):
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 1, 3))
    geometry = ((1, 1), ((1, 1), (1, 1)), (1, 1))
    text = (
        jax.jit(lambda x, kernel: convolutions.depthwise_convolution(x, kernel, *geometry))
        .trace(x, kernel)
        .lower(lowering_platforms=(platform,))
        .as_text()
    )
    assert text.count("stablehlo.convolution") == convolution_count
