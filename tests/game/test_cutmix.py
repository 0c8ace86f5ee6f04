"""CutMix: boxes of one kind of images in the other, of key and index alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.game.cutmix import cut_together

KEY = jax.random.key(0)
COUNT, SIZE = 400, 16


def cut(indices, share, key=KEY):
    """Cuts images of zeros together with images of ones: what comes of the second kind."""
    shape = (len(indices), SIZE, SIZE, 3)
    cuts = cut_together(key, jnp.asarray(indices), jnp.zeros(shape), jnp.ones(shape), share)
    return np.asarray(cuts)


def test_one_kind_fills_a_box_in_the_other():
    cuts = cut(np.arange(COUNT), share=1.0)
    assert set(np.unique(cuts)) == {0, 1}
    np.testing.assert_array_equal(cuts, cuts[..., :1].repeat(3, -1))  # whole pixels
    outside, boxes = 0, []
    for image in cuts[..., 0]:
        # The box is of the second kind, or what surrounds it.
        found = [kind for kind in (image, 1 - image) if is_box(kind)]
        assert found
        outside += not is_box(image)
        boxes.append(found[0].mean())
    # What surrounds a box that touches three borders is a box as well.
    assert 0.2 < outside / COUNT < 0.6
    assert min(boxes) < 0.05
    assert max(boxes) > 0.6


def is_box(image):
    rows, columns = image.any(1), image.any(0)
    return bool(image.any()) and np.array_equal(image, np.outer(rows, columns))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_is_cut(share):
    untouched = np.mean([not image.any() for image in cut(np.arange(COUNT), share)])
    assert untouched == pytest.approx(1 - share, abs=0.1)


def test_a_cut_is_a_function_of_its_key_and_index():
    cuts = cut(np.arange(8), share=1.0)
    np.testing.assert_array_equal(cut([5, 2], share=1.0), cuts[[5, 2]])
    assert not np.array_equal(cut(np.arange(8), share=1.0, key=jax.random.key(1)), cuts)


def test_each_is_cut_together_with_its_own():
    first = jnp.arange(8.0)[:, None, None, None] * jnp.ones((1, SIZE, SIZE, 3))
    cuts = np.asarray(cut_together(KEY, jnp.arange(8), first, first + 100, 1.0))
    for index, image in enumerate(cuts):
        assert set(np.unique(image)) <= {index, index + 100}
