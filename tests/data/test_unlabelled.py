"""Images of a user without labels: npz files and folders, fitted, and what cannot be used."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image

from adadfq_jax.config.fields import default_config
from adadfq_jax.data.images import fit
from adadfq_jax.data.unlabelled import images_of
from adadfq_jax.errors import AdaDFQError
from tests.conftest import takes

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)


def of(size, channels=3):
    network = takes(size, channels)
    network.classes = 10
    return network


def read(path, network=None, share=0.5):
    config = default_config()
    config.samples.images, config.samples.images_share = str(path), share
    return images_of(config, network or of(8))


def test_labels_of_an_npz_file_are_ignored(tmp_path):
    np.savez(tmp_path / "own.npz", x=IMAGES)
    np.savez(tmp_path / "labelled.npz", x=IMAGES, y=["any", "thing"])
    plain, labelled = read(tmp_path / "own.npz"), read(tmp_path / "labelled.npz")
    assert (plain.labelled, labelled.labelled) == (False, True)
    for found in (plain, labelled):
        np.testing.assert_array_equal(found.pixels, IMAGES)
        assert (found.count, found.digest) == (5, plain.digest)
    np.savez(tmp_path / "own.npz", x=IMAGES[::-1])
    assert read(tmp_path / "own.npz").digest != plain.digest


@pytest.mark.parametrize("folders", [("", ""), ("cat", "dog"), ("cat/small", "")])
def test_folders_with_and_without_classes_are_read_as_evaluation_images(tmp_path, folders):
    random = np.random.default_rng(1)
    wide = random.integers(0, 256, (9, 12, 3), np.uint8)
    grey = random.integers(0, 256, (8, 8), np.uint8)
    for folder, image, name in zip(folders, (wide, grey), ("a.png", "b.PNG"), strict=True):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / folder / name)
    found = read(tmp_path)
    assert found.labelled == any(folders)
    expected = [fit(wide, of(8)), np.repeat(grey[..., None], 3, 2)]
    order = sorted(range(2), key=lambda i: f"{folders[i]}/{'ab'[i]}".lstrip("/"))
    np.testing.assert_array_equal(found.pixels, [expected[i] for i in order])
    assert read(tmp_path, of(8, 1)).pixels.shape == (2, 8, 8, 1)


def test_a_share_of_0_reads_nothing(tmp_path):
    assert read(tmp_path / "nowhere", share=0.0) is None
    assert images_of(default_config(), of(8)) is None


def test_other_files_are_left_out_with_a_warning(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("of last year")
    with pytest.warns(UserWarning, match=r"1 file was below .* \(\.txt\), left out: notes\.txt"):
        assert read(tmp_path).count == 1


@pytest.mark.parametrize(
    ("make", "network", "message"),
    [
        (lambda path: None, of(8), "there are no images 'PATH' (samples.images): give a folder"),
        (lambda path: path.mkdir(), of(8), "there are no images in 'PATH': expected own/NAME"),
        (
            lambda path: (path.mkdir(), (path / "a.txt").write_text("")),
            of(8),
            "and found 1 other files (.txt).",
        ),
        (
            lambda path: (path.mkdir(), (path / "a.png").write_text("no picture")),
            of(8),
            "a.png' cannot be decoded: it is no image",
        ),
        (
            lambda path: (path.mkdir(), Image.fromarray(IMAGES[0]).save(path / "a.png")),
            of(8, 2),
            "the teacher takes images of 2 channels: give them as npz.",
        ),
        (lambda path: _save(path, y=IMAGES), of(8), "must hold an array x of images, and holds"),
        (lambda path: _save(path, x=IMAGES[:0]), of(8), "there are no images."),
        (lambda path: _save(path, x=IMAGES / 255), of(8), "images must be uint8"),
        (
            lambda path: _save(path, x=IMAGES[..., 0]),
            of(8),
            "PATH has images of 1 channel, but the teacher takes 3 channels.",
        ),
        (
            lambda path: _save(path, x=IMAGES),
            of(16),
            "PATH has images of 8x8 pixels, but the teacher takes 16x16.",
        ),
        (lambda path: path.write_text("text"), of(8), "is not an .npz file, or it is cut short"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, make, network, message):
    path = tmp_path / "own"
    make(path)
    with pytest.raises(AdaDFQError, match=re.escape(message.replace("PATH", str(path)))) as caught:
        read(path, network)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_images_elsewhere_are_refused():
    with pytest.raises(AdaDFQError, match="'gs://bucket/own' must be on a disk"):
        read("gs://bucket/own")


def _save(path, **arrays):
    np.savez(path.with_suffix(".npz"), **arrays)
    shutil.move(path.with_suffix(".npz"), path)
