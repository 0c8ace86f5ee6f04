"""What a network says of itself, and which images it takes."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from adadfq_jax.errors import ConfigError
from adadfq_jax.models.display import bits_in_words
from tests.conftest import SIZE


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 16, 16, 3), r"must be \(number, 8, 8, 3\), not \(2, 16, 16, 3\)\."),
        ((2, SIZE, SIZE, 1), r"not \(2, 8, 8, 1\)\."),
        ((2, 3, SIZE, SIZE), r"not \(2, 3, 8, 8\)\."),
        ((SIZE, SIZE, 3), r"not \(8, 8, 3\): one image is images\[None\]\."),
    ],
)
def test_images_of_another_shape_are_refused(teacher, shape, words):
    with pytest.raises(ConfigError, match=words):
        teacher(np.zeros(shape, np.uint8))


def test_images_may_be_of_another_library(teacher):
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    expected = np.asarray(teacher(images))
    for same in (torch.from_numpy(images), jnp.asarray(images)):
        np.testing.assert_array_equal(teacher(same), expected)


def test_bits_are_those_that_were_asked_for():
    widths = {"first": (8, 8), "middle": (4, 4), "last": (8, 8)}
    arrays = {
        f"bits/{layer}/{kind}": np.int32(width)
        for layer, both in widths.items()
        for kind, width in zip(("weight", "activation"), both, strict=True)
    }
    assert bits_in_words(arrays) == "w8a8 (2 at other widths)"
    asked = {"weight": 4, "activation": 4}
    assert bits_in_words(arrays, asked) == "w4a4 (4 at other widths)"
    assert bits_in_words({}) == "full precision"
