"""tensorflow-datasets, without TensorFlow."""

import io
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image

from adadfq_jax.data import prepare
from adadfq_jax.data.images import fit
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import DataError
from adadfq_jax.evaluation.accuracy import evaluate
from adadfq_jax.teachers.load import save_teacher
from tests import ROOT
from tests.conftest import make_teacher, takes

random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (23, 8, 8, 3), np.uint8)
LABELS = random.integers(0, 10, 23)
IMAGES[3] = IMAGES[3, :, :, :1]  # stored with one channel
IMAGES[4] = IMAGES[4] // 51 * 51  # stored with a palette, which has these colours


@pytest.fixture(autouse=True)
def without_tensorflow(monkeypatch):
    """Makes an import of TensorFlow fail, installed or not."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def encoded(image, mode=None):
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, "PNG")
    file.seek(0)
    return file


class _Small(tfds.core.GeneratorBasedBuilder):
    """Images of three kinds; `splits` says what there is."""

    VERSION = tfds.core.Version("1.0.0")
    splits = ("train", "test")
    classes = 10

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(),
                    "label": tfds.features.ClassLabel(num_classes=self.classes),
                    "id": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, _):
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split):
        for index, (image, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
            file = encoded(image, {3: "L", 4: "P"}.get(index))
            if split == "test" and index == 5 and "broken" in self.name:
                file = io.BytesIO(file.getvalue()[:60])
            # Where labels are withheld, as ImageNet withholds its test labels.
            label = -1 if split == "test" and "withheld" in self.name else label
            yield index, {"image": file, "label": int(label), "id": f"{split} {index}"}


class SmallImages(_Small):
    pass


class BrokenImages(_Small):
    pass


class WithheldImages(_Small):
    splits = ("test", "validation")


class OnlyImages(_Small):
    splits = ("everything",)


class TrainingImages(_Small):
    splits = ("train", "extra")


class NoImages(_Small):
    def _info(self):
        features = {"text": tfds.features.Text()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, split):
        yield 0, {"text": split}


class NeverPrepared(_Small):
    pass


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where all of them are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    for name in ("small", "broken", "withheld", "only", "training", "no"):
        prepare.prepare(f"{name}_images", str(folder))
    return folder


def test_a_prepared_set_is_read(data_dir):
    dataset = load_dataset("tfds:small_images", data_dir)
    assert dataset.name == "tfds:small_images, split test"
    assert dataset.class_names == tuple("0123456789")
    # Prepared sets are shuffled.
    found = [
        (image.tobytes(), int(label))
        for images, labels in dataset.batches(5, takes(8))
        for image, label in zip(images, labels, strict=True)
    ]
    expected = [(image.tobytes(), label) for image, label in zip(IMAGES, LABELS, strict=True)]
    assert sorted(found) == sorted(expected)
    teacher = make_teacher()
    result, direct = evaluate(teacher, dataset, 7), evaluate(teacher, (IMAGES, LABELS), 7)
    assert 0 < result["top5"] < 1
    for name in ("top1", "top5", "images"):
        assert result[name] == direct[name]


def test_images_of_another_size_are_resized(data_dir):
    ((images, _),) = load_dataset("tfds:small_images", data_dir).batches(100, takes(6))
    expected = [fit(image, takes(6)) for image in IMAGES]
    assert sorted(map(bytes, images)) == sorted(map(bytes, expected))


@pytest.mark.parametrize(
    ("name", "split"), [("withheld_images", "validation"), ("only_images", "everything")]
)
def test_the_split_with_labels_is_found(data_dir, name, split):
    dataset = load_dataset(f"tfds:{name}", data_dir)
    assert dataset.name.endswith(f"split {split}")
    ((_, labels),) = dataset.batches(100, takes(8))
    assert sorted(labels) == sorted(LABELS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("training_images", r"no split 'test' or 'validation', but (train, extra|extra, train)\."),
        ("no_images", "needs the features 'image' and 'label', and has text"),
        ("smal_images", "knows no 'smal_images': did you mean small_images"),
        ("small_images/other", "tfds:small_images/other cannot be opened"),
        ("small_images:7.0.0", "tfds:small_images:7.0.0 cannot be opened"),
    ],
)
def test_sets_that_cannot_be_used(data_dir, name, message):
    with pytest.raises(DataError, match=message) as error:
        load_dataset(f"tfds:{name}", data_dir)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [("never_prepared", ""), ("cifar10", ""), ("imagenet2012", " --manual_dir=FOLDER")],
)
def test_an_unprepared_set_names_the_command(tmp_path, name, options):
    command = f"./launch/prepare_data.sh {name} --data_dir={tmp_path}{options}"
    with pytest.raises(DataError, match=rf"not prepared in .*once with: {re.escape(command)}"):
        load_dataset(f"tfds:{name}", tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert (ROOT / "launch" / "prepare_data.sh").exists()


def test_what_cannot_be_prepared_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"^nothing_of_it was not prepared: DatasetNotFoundError"):
        prepare.prepare("nothing_of_it", str(tmp_path))


def test_a_set_prepared_in_another_format(tmp_path, data_dir):
    source, target = data_dir / "small_images" / "1.0.0", tmp_path / "small_images" / "1.0.0"
    target.mkdir(parents=True)
    for file in source.glob("*.json"):
        text = file.read_text().replace("array_record", "tfrecord")
        (target / file.name).write_text(text)
    with pytest.raises(DataError, match=r"prepared, but not as array_record.* --data_dir="):
        load_dataset("tfds:small_images", tmp_path)


def test_a_damaged_image_is_named(data_dir):
    dataset = load_dataset("tfds:broken_images", data_dir)
    with pytest.raises(DataError, match=r"image \d+ of tfds:broken_images, split test cannot be"):
        list(dataset.batches(4, takes(8)))


def test_damaged_records_are_an_error(tmp_path, data_dir):
    source, target = data_dir / "small_images" / "1.0.0", tmp_path / "small_images" / "1.0.0"
    target.mkdir(parents=True)
    for file in source.iterdir():
        content = bytearray(file.read_bytes())
        if "array_record" in file.name:
            content[1000:3000] = bytes(2000)  # the rest is padding
        (target / file.name).write_bytes(content)
    with pytest.raises(DataError, match="tfds:small_images"):
        list(load_dataset("tfds:small_images", tmp_path).batches(4, takes(8)))


@pytest.mark.parametrize(
    ("name", "size", "classes", "split"),
    [("cifar10", 32, 10, "test"), ("imagenet2012", 224, 1000, "validation")],
)
def test_known_sets_by_mock_data(name, size, classes, split):
    """Encoded, as the real files are: tfds' own random images come decoded."""
    random = np.random.default_rng(0)
    images = [
        random.integers(0, 256, (size + 3 * index, size + 40, 3)[: 3 - index % 2], np.uint8)
        for index in range(6)
    ]
    if name == "cifar10":
        images = list(random.integers(0, 256, (6, 32, 32, 3), np.uint8))
    asked = []

    class Source(list):
        decoders = None

    def as_data_source(builder, split):
        asked.append(split)
        withheld = builder.name == "imagenet2012" and split == "test"
        return Source(
            {"image": encoded(image).getvalue(), "label": -1 if withheld else 3 * index}
            for index, image in enumerate(images)
        )

    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        dataset = load_dataset(f"tfds:{name}")
        assert len(dataset.class_names) == classes
        assert asked[-1] == split
        assert dataset.name == f"tfds:{name}, split {split}"
        ((found, labels),) = dataset.batches(100, takes(size))
    assert labels.tolist() == [0, 3, 6, 9, 12, 15]
    for image, given in zip(found, images, strict=True):
        coloured = np.broadcast_to(
            given[..., None] if given.ndim == 2 else given, (*given.shape[:2], 3)
        )
        np.testing.assert_array_equal(image, fit(np.ascontiguousarray(coloured), takes(size)))


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("imagenet2012", 1000)])
def test_known_sets_by_mock_datas_own_images(name, classes):
    with tfds.testing.mock_data(num_examples=5):
        dataset = load_dataset(f"tfds:{name}")
        ((images, labels),) = dataset.batches(10, takes(32))
    assert images.shape == (5, 32, 32, 3)
    assert ((labels >= 0) & (labels < classes)).all()


def test_the_command_line_says_one_sentence(tmp_path, sentence):
    save_teacher(make_teacher(), tmp_path / "teacher.safetensors")
    before = logging.get_verbosity()
    said = sentence(
        [
            "evaluate",
            f"--teacher={tmp_path / 'teacher.safetensors'}",
            "--source=tfds:cifar10",
            f"--path={tmp_path / 'data'}",
            "--cache=",
        ]
    )
    assert said.startswith("adadfq evaluate: tfds:cifar10 is not prepared")
    assert logging.get_verbosity() == before
