"""The teachers of other shapes: what they are trained on, and that the package reads them."""

import numpy as np
import pytest
import torch

from adadfq_jax.assets import train_teachers
from adadfq_jax.errors import DataError


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (64, 16, 16, 3), np.uint8), rng.integers(0, 10, 64)


def test_no_image_is_both_trained_on_and_held_out(tmp_path):
    # Each image is a number of its own, and its label follows from it.
    numbers = np.arange(10_000)
    x = (numbers[:, None] // [1, 100, 10_000] % 100).astype(np.uint8).reshape(-1, 1, 1, 3)
    np.savez(tmp_path / "test.npz", x=x, y=(numbers % 10).astype(np.uint8))
    found = []
    for part, count in zip(train_teachers.split(tmp_path / "test.npz"), (8000, 2000), strict=True):
        number = part[0].reshape(count, 3) @ [1, 100, 10_000]
        np.testing.assert_array_equal(part[1], number % 10)
        found += number.tolist()
    assert sorted(found) == numbers.tolist()


@pytest.mark.parametrize(
    ("shape", "classes", "says"),
    [
        ((8000, 2, 2, 3), 10, r"more than 8,000 square images .* holds \(8000, 2, 2, 3\)"),
        ((8001, 2, 2, 1), 10, "of 3 channels"),
        ((8001, 2, 2, 3), 11, "in the classes 0 to 10"),
    ],
)
def test_other_images_are_refused(tmp_path, shape, classes, says):
    path = tmp_path / "test.npz"
    np.savez(path, x=np.zeros(shape, np.uint8), y=np.arange(shape[0]) % classes)
    with pytest.raises(DataError, match=says):
        train_teachers.split(path)


def test_images_that_are_missing_are_one_sentence(monkeypatch, tmp_path):
    words = ["train_teachers.py", f"--images={tmp_path / 'no.npz'}", f"--output={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit, match="--images: there is no data file"):
        train_teachers.main()
    assert not (tmp_path / "out").exists()


def test_the_label_of_a_turned_image_says_by_how_much(images):
    x, y = images
    turns = np.arange(64) % 4
    turned, labels = train_teachers.turned(x, y, turns)
    np.testing.assert_array_equal(labels % 10, y)
    for index in range(4):
        back = np.rot90(turned[index], -(labels[index] // 10))
        np.testing.assert_array_equal(back, x[index])


@pytest.mark.parametrize("name", train_teachers.NETWORKS)
def test_networks_have_a_logit_for_each_class(name):
    network = train_teachers.NETWORKS[name][0]().eval()
    logits = network(torch.zeros(2, 3, 16, 16))
    assert logits.shape == (2, 40 if name == "turned" else 10)


@pytest.mark.networks
@pytest.mark.parametrize("name", train_teachers.NETWORKS)
def test_a_trained_network_becomes_a_teacher(name, images):
    teacher = train_teachers.train(name, *images, epochs=2)
    assert (teacher.architecture, teacher.image_size) == (name, 16)
    assert teacher.classes == (40 if name == "turned" else 10)
    np.testing.assert_allclose(teacher.mean, images[0].mean((0, 1, 2)) / 255, rtol=1e-6)
    for mean in (leaf for leaf in _leaves(teacher.variables["batch_stats"], "mean")):
        assert np.any(mean != 0), "a BatchNorm has seen no image"


def _leaves(tree, name):
    for key, value in tree.items():
        if key == name:
            yield np.asarray(value)
        elif isinstance(value, dict):
            yield from _leaves(value, name)
