"""Image files of any kind become the pixels that a person sees, or are refused; none is lost."""

import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image

from adadfq_jax.data.dataset import from_arrays
from adadfq_jax.data.images import decode
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import DataError

RAMP = np.linspace(0, 255, 64).reshape(8, 8).round().astype(np.uint8)


def encoded(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def test_16_bit_grey_is_scaled():
    wide = Image.fromarray(RAMP.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        decoded = decode(encoded(wide, kind), "x")
        np.testing.assert_array_equal(decoded, np.repeat(RAMP[..., None], 3, 2))


def test_pixels_that_nobody_can_interpret_are_refused():
    for values in (RAMP.astype(np.float32), RAMP.astype(np.int32)):
        with pytest.raises(DataError, match="what is black and what is white"):
            decode(encoded(Image.fromarray(values), "TIFF"), "x")
    with pytest.raises(DataError, match="its largest value is 255 of 65535"):
        decode(encoded(Image.fromarray(RAMP.astype(np.uint16))), "x")


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr"])
def test_other_modes_are_what_pillow_shows(mode):
    image = Image.fromarray(RAMP).convert("RGB").convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode(encoded(image, kind), "x"), expected)


def test_transparent_pixels_are_put_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert (decode(encoded(image), "x") == 255).all()
    opaque = Image.new("RGBA", (4, 4), (255, 0, 0, 255))
    assert (decode(encoded(opaque), "x") == (255, 0, 0)).all()


def test_the_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    turned = decode(encoded(Image.fromarray(RAMP), exif=exif), "x")
    np.testing.assert_array_equal(turned[..., 0], RAMP[::-1, ::-1])


def write(folder, name, kind="PNG"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(Image.fromarray(RAMP), kind))


def labels_of(dataset):
    return sorted(int(dataset.records[index][1]) for index in range(len(dataset)))


def test_every_image_counts_whatever_its_format_and_depth(tmp_path):
    for index, (name, kind) in enumerate(
        (("a.png", "PNG"), ("b.webp", "WEBP"), ("c.BMP", "BMP"), ("sub/d.png", "PNG"))
    ):
        write(tmp_path, f"cat/{name}", kind)
        write(tmp_path, f"dog/deep/{index}/{name}", kind)
    assert labels_of(load_dataset("folder", tmp_path)) == [0] * 4 + [1] * 4


def test_what_is_no_image_is_said_once(tmp_path):
    write(tmp_path, "cat/a.png")
    write(tmp_path, "dog/a.png")
    for name in ("a.txt", "b.txt", "c.xml"):
        (tmp_path / "cat" / name).write_text("x")
    for name in (".hidden", "Thumbs.db"):
        (tmp_path / "dog" / name).write_text("x")
    with pytest.warns(
        UserWarning, match=r"3 files were below .*\(\.txt, \.xml\), left out: "
    ) as warned:
        assert len(load_dataset("folder", tmp_path)) == 2
    assert len(warned) == 1
    for path in (tmp_path / "cat").glob("?.[tx]*"):
        path.unlink()
    write(tmp_path, "loose.png")
    with pytest.warns(UserWarning, match=r"1 image was in .* itself, in no class folder"):
        load_dataset("folder", tmp_path)


def test_a_link_in_a_circle_is_refused(tmp_path):
    write(tmp_path, "cat/a.png")
    (tmp_path / "cat" / "again").symlink_to(tmp_path / "cat")
    with pytest.raises(DataError, match="a link to a folder that it lies in"):
        load_dataset("folder", tmp_path)


def test_the_parts_of_a_data_set_are_no_classes(tmp_path):
    write(tmp_path, "train/cat/a.png")
    write(tmp_path, "val/cat/a.png")
    with pytest.raises(DataError, match="the parts of a data set"):
        load_dataset("folder", tmp_path)


@pytest.fixture
def numbered(tmp_path):
    for number in (1, 2, 10):
        for index in range(number):
            write(tmp_path, f"images/{number}/{index}.png")
    return tmp_path / "images"


def test_capitals_before_other_letters_are_said(tmp_path):
    for name in ("bird", "Cat"):
        (tmp_path / name).mkdir()
        Image.fromarray(RAMP).save(tmp_path / name / "a.png")
    with pytest.warns(UserWarning, match="'Cat' is class 0, and not 'bird'"):
        assert load_dataset("folder", tmp_path).class_names == ("Cat", "bird")


def test_numbered_folders_in_the_order_of_text_are_said(numbered, tmp_path):
    with pytest.warns(UserWarning, match="'10' is class 1 and '2' class 2.*--labels=FILE"):
        assert labels_of(load_dataset("folder", numbered)) == [0] + [1] * 10 + [2] * 2
    for text in (
        json.dumps({"1": 0, "2": 1, "10": 2}),
        json.dumps(["1", "2", "10"]),
        "1 0\n2 1\n10 2\n",
        "1\n2\n10\n",
    ):
        (tmp_path / "labels").write_text(text)
        found = load_dataset("folder", numbered, tmp_path / "labels")
        assert labels_of(found) == [0] + [1] * 2 + [2] * 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"1": 0, "2": 1}', r"say nothing of 1 class folders \(10\)"),
        ('{"1": 0, "1": 1, "2": 1, "10": 2}', "name 1 more than once"),
        ('{"1": "a", "2": 1, "10": 2}', "must be a JSON object"),
        ("1 0 x\n2\n", "must be a JSON object"),
        ("", "must be a JSON object"),
    ],
)
def test_labels_that_cannot_be_used(numbered, tmp_path, text, message):
    (tmp_path / "labels").write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset("folder", numbered, tmp_path / "labels")
    with pytest.raises(DataError, match="is no image folder"):
        load_dataset("npz", numbered, tmp_path / "labels")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 8, 8), np.uint8), np.zeros(2, int), "transpose"),
        (np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, int), r"\(255 \* images\).round"),
        (np.zeros((2, 8, 8, 3), np.uint16), np.zeros(2, int), "images / 257"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 1), int), r"labels\[:, 0\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 10), int), r"labels.argmax\(1\)"),
    ],
)
def test_arrays_of_another_form_are_told_what_would_be_right(images, labels, message):
    with pytest.raises(DataError, match=message):
        from_arrays(images, labels)
