"""Evaluation sets: npz files, folders of images, and the pipeline."""

import io
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from adadfq_jax.data.dataset import Dataset, check_fits, from_arrays
from adadfq_jax.data.images import fit
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import DataError
from tests.conftest import takes

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
        (IMAGES / 255, LABELS, r"uint8.*not float64.*\(255 \* images\)"),
        (IMAGES / 255 - 0.5, LABELS, "look normalised.*from before mean and std"),
        (IMAGES.astype(np.int32), LABELS, "uint8.*not int32"),
        (IMAGES[..., 0, 0], LABELS, r"\(N, H, W, channels\).*\(11, 8\)"),
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
    with pytest.raises(DataError, match="must hold an array x of images and an array y of labels"):
        load_dataset("npz", path)


class Trap:
    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


def test_pickled_objects_are_refused(path):
    np.savez(path, x=np.array([Trap()] * 11, object), y=LABELS)
    with pytest.raises(DataError, match="holds Python objects, which are not read"):
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


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.npz", "there is no data file"), (".", "is a folder, not an .npz")],
)
def test_missing_file(tmp_path, name, message):
    with pytest.raises(DataError, match=message):
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


def test_a_sample_is_drawn_over_the_whole_set():
    dataset = from_arrays(
        np.repeat(np.arange(200, dtype=np.uint8), 12).reshape(200, 2, 2, 3), np.arange(200)
    )
    ((images, labels),) = dataset.sample(50).batches(100)
    assert len(set(labels.tolist())) == 50
    assert (labels < 100).sum() in range(15, 36)
    np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
    ((_, again),) = dataset.sample(50).batches(100)
    np.testing.assert_array_equal(labels, again)
    assert len(dataset.sample(1000)) == 200


# ---- Image folders ----------------------------------------------------------------------------


def resized(image, height, width):
    """Bilinear with antialiasing, in NumPy: triangles as wide as an output pixel."""

    def weights(before, after):
        scale = max(before / after, 1.0)
        centres = (np.arange(after) + 0.5) * before / after
        distance = (np.arange(before) + 0.5 - centres[:, None]) / scale
        triangle = np.clip(1 - np.abs(distance), 0, None)
        return triangle / triangle.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("ah,bw,hwc->abc", rows, columns, image / 255.0)


@pytest.fixture
def folder(tmp_path):
    """Three classes of images of many sizes and formats."""
    for name, pixels, mode in (
        ("b/landscape.jpg", (70, 111), "RGB"),
        ("b/portrait.JPEG", (123, 61), "RGB"),
        ("a/small.png", (20, 25), "RGB"),
        ("a/grey.jpg", (50, 41), "L"),
        ("c/palette.png", (44, 90), "P"),
        ("c/exact.png", (32, 32), "RGB"),
        ("c/square.jpeg", (64, 64), "RGB"),
    ):
        file = tmp_path / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        # Smooth, so that a wrong offset shows.
        y, x = np.mgrid[: pixels[0], : pixels[1]] / 11
        image = np.stack([np.sin(x) + 1, np.cos(y) + 1, np.sin(x * y / 9) + 1], -1) * 127
        Image.fromarray(image.astype(np.uint8)).convert(mode).save(file)
    for name in ("a/.hidden.png", ".cache/x.png", "notes.txt"):
        file = tmp_path / "images" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("no image")
    return tmp_path / "images"


def test_a_folder_gives_what_pil_and_numpy_give(folder):
    files = ["a/grey.jpg", "a/small.png", "b/landscape.jpg", "b/portrait.JPEG"]
    files += ["c/exact.png", "c/palette.png", "c/square.jpeg"]
    ((images, labels),) = load_dataset("folder", folder).batches(100, takes(32))
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    for file, image in zip(files, images, strict=True):
        pixels = np.asarray(Image.open(folder / file).convert("RGB"))
        height, width, _ = pixels.shape
        expected = pixels / 255.0
        if (height, width) != (32, 32):
            short = 32  # whole: nothing is cut off a square
            scale = short / min(height, width)
            height, width = max(short, int(height * scale)), max(short, int(width * scale))
            top, left = round((height - 32) / 2), round((width - 32) / 2)
            expected = resized(pixels, height, width)[top : top + 32, left : left + 32]
        assert np.ptp(expected) > 0.5
        np.testing.assert_allclose(image / 255.0, expected, atol=1 / 255, err_msg=file)


@pytest.mark.parametrize("shape", [(64, 64), (32, 48), (48, 32)])
def test_small_networks_see_whole_images(shape):
    image = np.asarray(Image.effect_noise((32, 32), 80).convert("RGB"))
    if shape == (64, 64):
        larger = image.repeat(2, 0).repeat(2, 1)
        assert np.abs(fit(larger, takes(32)).astype(int) - image).mean() < np.ptp(image) / 8
        return
    rows, columns = ((side - 32) // 2 for side in shape)
    padded = np.pad(image, ((rows, rows), (columns, columns), (0, 0)))
    np.testing.assert_array_equal(fit(padded, takes(32)), image)


def test_pixels_of_0_and_1_are_refused():
    with pytest.raises(DataError, match="no pixel is above 1"):
        from_arrays((IMAGES > 127).astype(np.uint8), LABELS)


def test_imagenets_sizes():
    image = np.asarray(Image.effect_noise((500, 375), 80).convert("RGB"))
    expected = Image.fromarray(image).resize((341, 256), Image.Resampling.BILINEAR)
    left, top = 58, 16  # (341 - 224) / 2, rounded to even
    expected = np.asarray(expected)[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(fit(image, takes(224)), expected)


def test_images_are_prepared_as_a_network_was_trained():
    image = np.asarray(Image.effect_noise((60, 40), 80).convert("RGB"))
    picture, bicubic = Image.fromarray(image), Image.Resampling.BICUBIC
    found = fit(image, takes(30, resize=36, interpolation="bicubic"))
    expected = np.asarray(picture.resize((54, 36), bicubic))[3:33, 12:42]
    np.testing.assert_array_equal(found, expected)
    found = fit(image, takes(30, resize=30, interpolation="bicubic", crop="squash"))
    np.testing.assert_array_equal(found, picture.resize((30, 30), bicubic))
    # Also of the network's size, if it was trained on a centre of it.
    square = image[:40, :40]
    np.testing.assert_array_equal(fit(square, takes(40)), square)
    enlarged = np.asarray(Image.fromarray(square).resize((48, 48), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fit(square, takes(40, resize=48)), enlarged[4:44, 4:44])
    grey = fit(image, takes(30, channels=1))
    assert grey.shape == (30, 30, 1)
    assert np.abs(grey[..., 0] - fit(image, takes(30)).mean(-1)).max() < 2


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (4, 8)])
def test_arrays_have_a_networks_channels(channels, size):
    shape = (2, size, size, channels)
    dataset = from_arrays(np.full(shape, 9, np.uint8), np.arange(2))
    network = takes(size, channels)
    network.classes = 10
    check_fits(dataset, network)
    if channels == 1:
        check_fits(from_arrays(np.full(shape[:3], 9, np.uint8), np.arange(2)), network)
    network.channels = 2
    with pytest.raises(DataError, match=f"images of {channels} channels?, but the teacher takes 2"):
        check_fits(dataset, network)


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("shards", [1, 2, 3, 9])
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_shards_hold_each_image_once(folder, workers, shards, batch_size):
    whole = load_dataset("folder", folder)
    ((expected, expected_labels),) = whole.batches(100, takes(8), workers=0)
    found = np.zeros_like(expected)
    counted = 0
    for shard in range(shards):
        taken = {"shard": shard, "shards": shards, "workers": workers}
        batches = list(whole.batches(batch_size, takes(8), **taken))
        assert all(len(labels) == batch_size for _, labels in batches[:-1])
        if not batches:
            continue
        images, labels = (np.concatenate(part) for part in zip(*batches, strict=True))
        found[shard::shards] = images
        np.testing.assert_array_equal(labels, expected_labels[shard::shards])
        counted += len(labels)
    assert counted == 7
    np.testing.assert_array_equal(found, expected)


def test_images_are_read_by_several_threads_but_not_far_ahead():
    class Records:
        threads, read = set(), 0

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            time.sleep(0.001)
            Records.threads.add(threading.get_ident())
            Records.read += 1
            return np.zeros((8, 8, 3), np.uint8), 0

    batches = Dataset("slow", Records(), encoded=True).batches(10, takes(8), workers=3)
    for _ in range(3):
        next(batches)
    time.sleep(0.3)
    assert len(Records.threads) == 3
    assert 30 <= Records.read <= 50
    assert threading.get_ident() not in Records.threads


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(folder, damage, workers):
    path = folder / "b" / "landscape.jpg"
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "text": b"text", "empty": b""}[damage])
    with pytest.raises(DataError, match=r"b/landscape.jpg' cannot be decoded: ") as error:
        list(load_dataset("folder", folder).batches(2, takes(8), workers=workers))
    assert "0x" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "no images.*found 0 class folders"),
        (["a.jpg"], "no images.*CLASS/NAME.jpg.*found 0 class folders"),
        (["a/readme.txt", "b/readme.txt"], "found 2 class folders"),
    ],
)
def test_a_folder_without_images(tmp_path, files, message):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=message):
        load_dataset("folder", tmp_path)


def test_a_folder_that_is_none(folder):
    for path in (folder / "missing", folder / "notes.txt"):
        with pytest.raises(DataError, match="there is no image folder"):
            load_dataset("folder", path)
    with pytest.raises(DataError, match="'folder' needs a path"):
        load_dataset("folder")


@pytest.mark.parametrize("classes", [9, 10, 11])
def test_a_folder_must_have_the_teachers_classes(folder, teacher, classes):
    for index in range(3, classes):
        (folder / f"{index}").mkdir()
    dataset = load_dataset("folder", folder)
    if classes == 10:
        check_fits(dataset, teacher)
        return
    with pytest.raises(DataError, match=rf"{classes} classes \(\d+, .*, …, c\).* has 10"):
        check_fits(dataset, teacher)


def test_a_stratified_subset_has_the_classes_shares(tmp_path):
    """Of 400, 200 and 10 images; always the same ones, and others of another seed."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [400, 200, 10]))
    images = np.arange(610, dtype=np.uint16).view(np.uint8).reshape(610, 1, 2, 1).repeat(3, axis=3)
    dataset = from_arrays(images, labels)
    subset = dataset.stratified(61)
    assert np.bincount([label for _, label in subset.records]).tolist() == [40, 20, 1]
    chosen, again, other = (
        {image.tobytes() for image, _ in dataset.stratified(61, seed).records} for seed in (0, 0, 1)
    )
    assert len(chosen) == 61
    assert chosen == again != other
    assert len(dataset.stratified(610)) == 610
    with pytest.raises(DataError, match="610 images, too few for a subset of 611"):
        dataset.stratified(611)


def test_labels_are_known_without_decoding(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        for index in range(4):
            (tmp_path / name / f"{index}.png").write_bytes(b"no image at all")
    subset = load_dataset("folder", str(tmp_path)).stratified(6)
    with pytest.raises(DataError, match="cannot be decoded"):
        subset.records[0]
