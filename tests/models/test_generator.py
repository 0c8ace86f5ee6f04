"""The generator's sub-pixel form is the plain one; its BatchNorm is the batch's own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.models import generator
from adadfq_jax.ops import convolutions
from adadfq_jax.ops.gradients import sum_gradients


def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 5, 3, 2), (1, 1, 1, 4)])
def test_sub_pixel_form_is_the_convolution_of_the_enlarged_image(shape):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=shape), random.normal(size=(3, 3, shape[-1], 5))

    def plain(x, kernel):
        return convolve(x.repeat(2, 1).repeat(2, 2), kernel)

    np.testing.assert_allclose(
        convolutions.upsampled_convolution(x, kernel), plain(jnp.array(x), kernel), atol=1e-12
    )
    weights = random.normal(size=plain(jnp.array(x), kernel).shape)
    for argument in (0, 1):
        gradients = [
            jax.grad(lambda *a, f=f: (f(*a) * weights).sum(), argument)(jnp.array(x), kernel)
            for f in (convolutions.upsampled_convolution, plain)
        ]
        np.testing.assert_allclose(*gradients, atol=1e-11)


@pytest.mark.parametrize("conditioning", generator.CONDITIONINGS)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_images_are_normalised_per_channel_over_the_batch(size, conditioning):
    module = generator.Generator(size, 10, conditioning)
    noise = jax.random.normal(jax.random.key(0), (16, generator.LATENT_SIZE))
    labels = jnp.arange(16) % 10
    params = module.init(jax.random.key(1), noise, labels)["params"]
    images = module.apply({"params": params}, noise, labels)
    assert images.shape == (16, size, size, 3)
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std((0, 1, 2)), 1, atol=1e-2)


@pytest.mark.parametrize("conditioning", generator.CONDITIONINGS)
def test_labels_change_the_images(conditioning):
    module = generator.Generator(8, 10, conditioning)
    noise = jax.random.normal(jax.random.key(0), (4, generator.LATENT_SIZE))
    params = module.init(jax.random.key(1), noise, jnp.zeros(4, int))["params"]
    if conditioning == "batch_norm":  # whose tables start alike for all classes
        params["norm2"]["bias"] = params["norm2"]["bias"].at[1, :64].add(1.0)
    zeros, ones = (module.apply({"params": params}, noise, jnp.full(4, label)) for label in (0, 1))
    assert not np.allclose(zeros, ones)


def test_parameters_are_the_papers():
    """Shapes of the CIFAR generator at 32 px, by hand from the layer table."""
    module = generator.Generator(image_size=32, classes=10)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, 100)), jnp.zeros(2, int))[
        "params"
    ]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    dense = 100 * 128 * 64 + 128 * 64
    convs = 9 * 128 * 128 + 128 + 9 * 128 * 64 + 64 + 9 * 64 * 3 + 3
    assert count == 10 * 100 + dense + convs + 2 * (128 + 128 + 64)


def test_parameters_of_the_class_conditional_form():
    """At 224 px and 1000 classes, by hand: tables of a scale and a bias for each class."""
    module = generator.Generator(224, 1000, "batch_norm")
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, 100)), jnp.zeros(2, int))[
        "params"
    ]
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    dense = 100 * 128 * 56 * 56 + 128 * 56 * 56
    convs = 9 * 128 * 128 + 128 + 9 * 128 * 64 + 64 + 9 * 64 * 3 + 3
    assert count == dense + convs + 1000 * 2 * (128 + 128 + 64)


@pytest.mark.parametrize(("columns", "moved"), [(4, "all_gather"), (3, "psum")])
def test_a_dense_gradient_is_of_the_whole_batch_by_what_moves_less(columns, moved):
    """Eight images on four devices: gathered, or summed where the kernel has fewer rows."""
    random = np.random.default_rng(0)
    inputs, cotangent = random.normal(size=(4, 2, columns)), random.normal(size=(4, 2, 5))

    def of_a_slice(*factors):
        return sum_gradients({}, {"kernel": factors}, "data")["kernel"]

    of_all = jax.vmap(of_a_slice, axis_name="data", axis_size=4)
    whole = np.tensordot(inputs, cotangent, ((0, 1), (0, 1)))
    for found in of_all(inputs, cotangent):
        np.testing.assert_allclose(found, whole, rtol=1e-5, atol=1e-5)
    program = str(jax.make_jaxpr(of_a_slice, axis_env=[("data", 4)])(inputs[0], cotangent[0]))
    assert [name for name in ("all_gather", "psum") if name in program] == [moved]


@pytest.mark.usefixtures("x64")
def test_the_gradient_of_every_parameter_is_of_the_whole_batch():
    """On every device; the first layer's from what its devices gather."""
    batch = 8
    module = generator.Generator(8, 10, axis_name="data")
    noise = jax.random.normal(jax.random.key(0), (batch, generator.LATENT_SIZE))
    labels = jnp.arange(batch) % 10
    params = module.clone(axis_name=None).init(jax.random.key(1), noise, labels)["params"]
    weights = jax.random.normal(jax.random.key(2), (batch, 8, 8, 3))

    # Arguments all of them: the compiler would compute with constants for half a minute.
    def loss(params, noise, labels, weights):
        images = module.clone(axis_name=None).apply({"params": params}, noise, labels)
        return (images * weights).sum()

    def of_a_slice(params, noise, labels, weights):
        _, pull = generator.linearize(module, params, noise, labels)
        return sum_gradients(*pull(weights), "data")

    whole = jax.jit(jax.grad(loss))(params, noise, labels, weights)
    parts = [x.reshape(4, batch // 4, *x.shape[1:]) for x in (noise, labels, weights)]
    each = jax.jit(jax.vmap(of_a_slice, (None, 0, 0, 0), axis_name="data"))(params, *parts)
    for device in range(4):
        own = jax.tree.map(lambda leaf, device=device: leaf[device], each)
        chex.assert_trees_all_close(own, whole, atol=1e-10)
