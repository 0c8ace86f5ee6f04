"""Accuracy, on any number of devices, of any number of images."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from adadfq_jax.data.dataset import Dataset, from_arrays
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import DataError
from adadfq_jax.evaluation import accuracy
from adadfq_jax.evaluation.accuracy import accuracy_table, count_hits, evaluate
from adadfq_jax.models import registry
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


def _loss(network, images, labels):
    z = np.asarray(network(images), np.float64)
    return np.mean(np.log(np.exp(z).sum(-1)) - z[np.arange(len(labels)), labels])


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("batch_size", [8, 10, 37, 256])  # 8, 12, 40 and 40 over 4 devices
def test_every_image_is_counted_once(teacher, devices, batch_size):
    result = evaluate(teacher, (IMAGES, LABELS), batch_size, jax.devices()[:devices])
    top1, top5 = _counted(teacher, IMAGES, LABELS)
    assert 0 < top1 < top5 < 1  # the test can tell them apart
    assert (result["top1"], result["top5"]) == pytest.approx((top1, top5), abs=1e-12)
    assert result["images"] == 37
    assert result["loss"] == pytest.approx(_loss(teacher, IMAGES, LABELS), rel=1e-5)
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
        module=registry.build("resnet8_cifar", 3),
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


@pytest.mark.parametrize("given", ["test.npz", (IMAGES,), IMAGES])
def test_what_is_no_dataset(teacher, given):
    with pytest.raises(DataError, match=r"must be one of load_dataset, or \(images, labels\), not"):
        evaluate(teacher, given)


def test_other_image_size(teacher):
    with pytest.raises(DataError, match=r"7x7 pixels.*8x8"):
        evaluate(teacher, (IMAGES[:, 1:, 1:], LABELS))


def _of_each_class(network, images, labels):
    best = np.argsort(-np.asarray(network(images)), axis=-1)[:, :5]
    counts = np.zeros((10, 3), int)
    for row, label in zip(best, labels, strict=True):
        counts[label] += [1, label in row[:1], label in row]
    return counts


@pytest.mark.parametrize("devices", [1, 4])
def test_hits_of_each_class(teacher, devices):
    labels = np.where(LABELS == 7, 3, LABELS)  # a class without images
    result = evaluate(teacher, (IMAGES, labels), 8, jax.devices()[:devices], per_class=True)
    expected = _of_each_class(teacher, IMAGES, labels)
    np.testing.assert_array_equal(result["per_class"], expected)
    assert result["top1"] == expected[:, 1].sum() / 37
    assert "per_class" not in evaluate(teacher, (IMAGES, labels))
    lines = accuracy_table(result, [f"class {index}" for index in range(10)]).splitlines()
    assert lines[-3].split() == ["class", "7", "0", "-", "-"]
    images, top1, top5 = expected[3]
    shares = [f"{top1 / images:.2%}", f"{top5 / images:.2%}"]
    assert lines[-7].split() == ["class", "3", str(images), *shares]


@pytest.mark.parametrize("count", [37, 36, 5, 1])
@pytest.mark.parametrize("share", [1, 3, 50])
def test_two_processes_count_each_image_once(teacher, count, share):
    """Each simulated process has two devices, and reads with two workers what is its part."""
    reads = []

    class Records(list):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    records = Records(zip(IMAGES[:count], LABELS[:count], strict=True))
    dataset = Dataset("files", records, encoded=True)
    total, losses = 0, 0.0
    for shard in (0, 1):
        devices = jax.devices()[2 * shard : 2 * shard + 2]
        counts, loss, rate = count_hits(teacher, dataset, share, devices, 2, shard, 2)
        assert rate > 0
        total, losses = total + counts, losses + loss
    np.testing.assert_array_equal(total, _of_each_class(teacher, IMAGES[:count], LABELS[:count]))
    expected = count * _loss(teacher, IMAGES[:count], LABELS[:count])
    assert losses == pytest.approx(expected, rel=1e-5)
    assert sorted(reads) == list(range(count))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 37])
def test_processes_take_the_same_number_of_steps(teacher, count, monkeypatch):
    """Or those that are done would leave the others waiting."""
    steps = []
    monkeypatch.setattr(
        accuracy.pmap, "fetch", lambda value: steps.append(1) or (np.zeros((10, 3), int), 0.0)
    )
    dataset = from_arrays(IMAGES[:count], LABELS[:count])
    numbers = []
    for shard in (0, 1):
        count_hits(teacher, dataset, 2, jax.devices()[:2], 2, shard, 2)
        numbers.append(len(steps))
        steps.clear()
    assert numbers[0] == numbers[1] == -(-count // 8)


def test_a_damaged_image_among_good_ones_fails(teacher, tmp_path):
    for label in range(10):
        (tmp_path / str(label)).mkdir()
        for index in range(2):
            file = tmp_path / str(label) / f"{index}.jpg"
            Image.fromarray(IMAGES[2 * label + index]).save(file)
    assert evaluate(teacher, load_dataset("folder", tmp_path), 4)["images"] == 20
    damaged = tmp_path / "6" / "1.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"6/1\.jpg' cannot be decoded"):
        evaluate(teacher, load_dataset("folder", tmp_path), 4)


def test_of_many_classes_the_table_has_the_worst():
    counts = np.array([[2, 2, 2]] * 1000)
    counts[[7, 900]] = [[2, 1, 2], [0, 0, 0]]
    result = {"top1": 0.9, "top5": 1.0, "images_per_second": 1.0, "per_class": counts}
    lines = accuracy_table(result).splitlines()
    table = lines[lines.index("") + 2 :]
    assert table[0].split() == ["7", "2", "50.00%", "100.00%"]
    assert table[-1] == "and 980 other classes, which --json tells"
    assert len(table) == 21
