"""Procedural images: of their key alone, alike on any number of devices, as the teacher wants."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.devices import pmap
from adadfq_jax.game import procedural

NONE = (0.0,) * 3, (1.0,) * 3
KEY = jax.random.key(0)


def draw(indices, size=16, normalisation=NONE, key=KEY):
    return np.asarray(procedural.draw(key, jnp.asarray(indices), size, *normalisation))


@pytest.mark.parametrize("size", [8, 28])
def test_pixels_of_any_size(size):
    images = draw(np.arange(12), size)
    assert images.shape == (12, size, size, 3)
    assert images.min() >= 0
    assert images.max() <= 1
    # Neither noise nor flat: neighbours are alike, images are not.
    assert np.abs(np.diff(images, axis=1)).mean() < 0.5 * images.std()
    assert images.std((1, 2, 3)).min() > 0.01
    assert images.mean((1, 2, 3)).std() > 0.05


def test_an_image_is_a_function_of_its_key_and_index():
    images = draw(np.arange(4))
    np.testing.assert_array_equal(draw([2, 0]), images[[2, 0]])
    np.testing.assert_allclose(draw([2]), images[2:3], atol=1e-6)  # one alone is rounded otherwise
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(draw([0], key=jax.random.key(1)), images[:1])


def test_four_devices_draw_the_images_of_one():
    def run(count):
        devices = jax.devices()[:count]
        share = 8 // count

        def own(index):
            return procedural.draw(KEY, index * share + jnp.arange(share), 16, *NONE)

        drawn = pmap.map_over_devices(own, devices)(pmap.device_indices(devices))
        return np.asarray(drawn).reshape(8, 16, 16, 3)

    np.testing.assert_array_equal(run(4), run(1))


def test_they_are_in_the_teachers_space():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    expected = (draw(np.arange(3)) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(draw(np.arange(3), normalisation=(mean, std)), expected, atol=1e-6)
