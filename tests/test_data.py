import io
import zipfile

import numpy as np
import pytest

from adadfq_jax.data import Dataset, check_fits, from_arrays, load_dataset
from adadfq_jax.errors import DataError

random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (11, 8, 8, 3), np.uint8)
LABELS = random.integers(0, 10, 11)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.npz"


def test_none_is_no_data():
    assert load_dataset("none") is None


def test_unknown_source():
    with pytest.raises(DataError, match=r"'tar'.*known: none, npz"):
        load_dataset("tar", "x.tar")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8])
def test_npz_is_read(path, save, dtype):
    save(path, x=IMAGES, y=LABELS.astype(dtype))
    dataset = load_dataset("npz", path)
    assert len(dataset) == 11
    ((images, labels),) = dataset.batches(11)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 100])
def test_batches_hold_each_image_once_in_order(batch_size):
    batches = list(from_arrays(IMAGES, LABELS).batches(batch_size))
    sizes = [len(labels) for _, labels in batches]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sum(sizes) == 11
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), IMAGES)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), LABELS)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES / 255, LABELS, "uint8.*not float64"),
        (IMAGES.astype(np.int32), LABELS, "uint8.*not int32"),
        (IMAGES[..., 0], LABELS, r"\(N, H, W, 3\).*\(11, 8, 8\)"),
        (IMAGES[..., :1], LABELS, r"\(N, H, W, 3\).*\(11, 8, 8, 1\)"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, r"\(11, 3, 8, 8\)"),
        (IMAGES, LABELS[:-1], r"shape \(11,\).*\(10,\)"),
        (IMAGES, LABELS[:, None], r"\(11, 1\)"),
        (IMAGES, LABELS.astype(np.float32), "integers.*not float32"),
        (IMAGES, LABELS.astype(str), "integers"),
        (IMAGES[:0], LABELS[:0], "no images"),
    ],
)
def test_arrays_of_another_form_are_refused(path, images, labels, message):
    with pytest.raises(DataError, match=message):
        from_arrays(images, labels)
    np.savez(path, x=images, y=labels)
    with pytest.raises(DataError, match=f"data.npz.*{message}"):
        load_dataset("npz", path)


@pytest.mark.parametrize("names", [{"images": IMAGES, "y": LABELS}, {"x": IMAGES}, {}])
def test_missing_arrays_are_named(path, names):
    np.savez(path, **names)
    with pytest.raises(DataError, match="must hold arrays 'x' and 'y'"):
        load_dataset("npz", path)


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_pickled_objects_are_refused(path):
    np.savez(path, x=np.array([Trap()] * 11, object), y=LABELS)
    with pytest.raises(DataError, match=r"not a readable .npz.*allow_pickle"):
        load_dataset("npz", path)
    assert not Trap.sprung


def _saved(save=np.savez_compressed):
    file = io.BytesIO()
    save(file, x=IMAGES, y=LABELS)
    return file.getvalue()


def _flipped():
    content = bytearray(_saved())
    content[len(content) // 2] ^= 1
    return bytes(content)


def _array():
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


def _zip_of_text():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", "text")
        archive.writestr("y.npy", "text")
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"text", _saved()[:-100], _saved()[:50], _flipped(), _array(), _zip_of_text()],
    ids=["empty", "text", "end lost", "head only", "bit flipped", "npy", "zip of text"],
)
def test_damaged_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data\.npz"):
        load_dataset("npz", path)


@pytest.mark.parametrize("name", ["missing.npz", "."])
def test_missing_file(tmp_path, name):
    with pytest.raises(DataError, match="there is no data file"):
        load_dataset("npz", tmp_path / name)


def test_fitting_data(teacher):
    check_fits(from_arrays(IMAGES, LABELS), teacher)


def test_other_image_size(teacher):
    with pytest.raises(DataError, match=r"9x8 pixels.* 8x8"):
        check_fits(from_arrays(np.zeros((2, 9, 8, 3), np.uint8), LABELS[:2]), teacher)


@pytest.mark.parametrize("label", [-1, 10, 2**32 + 3])
def test_labels_that_are_no_class(teacher, label):
    labels = LABELS.copy()
    labels[5] = label
    with pytest.raises(DataError, match=rf"label {label}, .*0 to 9\."):
        check_fits(from_arrays(IMAGES, labels), teacher)


def test_labels_may_be_unknown_until_they_are_read(teacher):
    check_fits(Dataset("lazy", [(IMAGES[0], 99)]), teacher)
