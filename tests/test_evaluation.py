import dataclasses

import jax
import numpy as np
import pytest

from adadfq_jax import models
from adadfq_jax.data import Dataset
from adadfq_jax.errors import DataError
from adadfq_jax.evaluation import agreement, evaluate
from tests.conftest import SIZE, make_teacher

random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (37, SIZE, SIZE, 3), np.uint8)
LABELS = random.integers(0, 10, 37)


@pytest.fixture(scope="module")
def teacher():
    return make_teacher()


def _counted(network, images, labels):
    """Top-1 and top-5, by NumPy, one image at a time."""
    best = np.argsort(-np.asarray(network(images)), axis=-1)[:, :5]
    hits = [[label in row[:1], label in row] for row, label in zip(best, labels, strict=True)]
    return np.mean(hits, axis=0)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("batch_size", [8, 10, 37, 256])  # 8, 12, 40 and 40 over 4 devices
def test_every_image_is_counted_once(teacher, devices, batch_size):
    result = evaluate(teacher, (IMAGES, LABELS), batch_size, jax.devices()[:devices])
    top1, top5 = _counted(teacher, IMAGES, LABELS)
    assert 0 < top1 < top5 < 1  # the test can tell them apart
    assert (result["top1"], result["top5"]) == pytest.approx((top1, top5), abs=1e-12)
    assert result["images"] == 37
    assert result["images_per_second"] > 0


def test_fewer_images_than_devices(teacher):
    right = np.asarray(teacher(IMAGES[:2])).argmax(-1)
    assert evaluate(teacher, (IMAGES[:2], right))["top1"] == 1
    assert evaluate(teacher, (IMAGES[:2], (right + 1) % 10))["top1"] == 0


def test_top5_of_fewer_classes(teacher):
    params = dict(teacher.variables["params"])
    params["classifier"] = {name: array[..., :3] for name, array in params["classifier"].items()}
    network = dataclasses.replace(
        teacher,
        module=models.build("resnet8_cifar", 3),
        variables=teacher.variables | {"params": params},
    )
    result = evaluate(network, (IMAGES, LABELS % 3))
    assert result["top1"] == pytest.approx(_counted(network, IMAGES, LABELS % 3)[0])
    assert result["top5"] == 1


def test_normalisation_is_the_networks_own(teacher):
    other = dataclasses.replace(teacher, mean=(0.1, 0.2, 0.9), std=(0.05, 2.0, 0.5))
    expected = _counted(other, IMAGES, LABELS)
    assert tuple(expected) != tuple(_counted(teacher, IMAGES, LABELS))
    result = evaluate(other, (IMAGES, LABELS))
    assert (result["top1"], result["top5"]) == pytest.approx(tuple(expected))


@pytest.mark.parametrize("label", [-1, 10])
def test_labels_out_of_range(teacher, label):
    labels = LABELS.copy()
    labels[-1] = label
    with pytest.raises(DataError, match=f"label {label}, .* 0 to 9"):
        evaluate(teacher, (IMAGES, labels))
    records = list(zip(IMAGES, labels, strict=True))
    with pytest.raises(DataError, match=f"lazy has a label {label}, .* 0 to 9"):
        evaluate(teacher, Dataset("lazy", records), 8)


def test_other_image_size(teacher):
    with pytest.raises(DataError, match=r"7x7 pixels.*8x8"):
        evaluate(teacher, (IMAGES[:, 1:, 1:], LABELS))


def test_agreement_with_itself_and_another(teacher):
    images = random.normal(size=(37, SIZE, SIZE, 3)).astype(np.float32)
    other = make_teacher(seed=1)
    same = np.asarray(teacher(images)).argmax(-1) == np.asarray(other(images)).argmax(-1)
    assert 0 < same.mean() < 1
    assert agreement(teacher, teacher, images, 16) == 1
    assert agreement(teacher, other, images, 16) == pytest.approx(same.mean())
