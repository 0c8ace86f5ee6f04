"""Given images: flips and shifts of a user's, alike on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.devices import pmap
from adadfq_jax.game import given

KEY = jax.random.key(3)
NONE = (0.0,), (1 / 255,)  # a normalisation that leaves pixels as they are
OWN = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1), np.uint8)


def draw(indices, images=OWN):
    return np.asarray(given.draw(KEY, jnp.asarray(indices), images, *NONE))


def test_all_flips_and_shifts_of_all_images_are_drawn():
    """By an eighth of the side: two pixels each way, mirrored at the border."""
    wide = np.pad(OWN, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    kinds = {}
    for down in range(5):
        for across in range(5):
            cut = wide[:, down : down + 16, across : across + 16]
            for flipped in (False, True):
                for number, image in enumerate(cut[:, :, ::-1] if flipped else cut):
                    kinds[image.tobytes()] = number, down, across, flipped
    drawn = np.round(draw(np.arange(4000))).astype(np.uint8)
    found = np.array([kinds[image.tobytes()] for image in drawn])
    for values, count in zip(found.T, (5, 5, 5, 2), strict=True):
        np.testing.assert_allclose(np.bincount(values) / 4000, 1 / count, atol=0.03)
    assert len(np.unique(found, axis=0)) == len(kinds)


@pytest.mark.parametrize("size", [1, 4, 7])
def test_small_images_are_not_shifted(size):
    images = OWN[:, :size, :size]
    drawn = draw(np.arange(64), images)
    kinds = {image.tobytes() for image in (*images, *images[:, :, ::-1])}
    assert {image.tobytes() for image in np.round(drawn).astype(np.uint8)} <= kinds


def test_any_number_of_devices_draws_the_same():
    def own(index):
        indices = index * share + jnp.arange(share)
        drawn = given.draw(KEY, indices, jnp.asarray(OWN), *NONE)
        return given.put_in_place(KEY, indices, jnp.zeros_like(drawn), drawn, 0.5)

    found = []
    for count in (1, 4):
        share, devices = 8 // count, jax.devices()[:count]
        parts = np.asarray(pmap.map_over_devices(own, devices)(pmap.device_indices(devices)))
        found.append(parts.reshape(8, 16, 16, 1))
    np.testing.assert_array_equal(*found)
    assert 0 < (found[0] == 0).all((1, 2, 3)).sum() < 8
