"""Generated images to keep."""

import numpy as np
import pytest
from PIL import Image

from adadfq_jax.cli import main
from adadfq_jax.data.load import load_dataset
from adadfq_jax.training import quantize, samples
from tests.conftest import make_small_config, make_teacher

TEACHER = make_teacher()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run."""
    config = make_small_config()
    folder = tmp_path_factory.mktemp("run")
    quantize.quantize(config, TEACHER, folder, show_progress=False)
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def words_of(workdir, output, *argv, count=23):
    return [f"--workdir={workdir}", f"--output={output}", f"--count={count}", "--cache=", *argv]


def test_what_the_teacher_says_of_the_labels_is_told(workdir, tmp_path, capfd):
    assert sample(workdir, tmp_path / "images.npz") == 0
    with np.load(tmp_path / "images.npz") as file:
        shared = np.mean(file["logits"].argmax(-1) == file["y"])
    assert f"the teacher gives {shared:.1%} of the images the class" in capfd.readouterr().out


def sample(workdir, output, *argv, count=23):
    return main.run(["sample", *words_of(workdir, output, *argv, count=count)])


def test_a_file_of_images_labels_and_logits(workdir, tmp_path, monkeypatch):
    seen = []
    whole = samples.pixels

    def pixels(images, mean, std):
        seen.append((images, mean, std))
        return whole(images, mean, std)

    monkeypatch.setattr(samples, "pixels", pixels)
    path = tmp_path / "new" / "images.npz"
    assert sample(workdir, path) == 0
    with np.load(path) as file:
        x, y, logits = file["x"], file["y"], file["logits"]
    assert (x.shape, x.dtype) == ((23, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(y, np.arange(23) % 10)
    images, mean, std = seen[0]
    assert (mean, std) == (TEACHER.mean, TEACHER.std)
    # 0.25 x + 0.5, which rounding moves by at most half a level.
    exact = 255 * np.clip(0.25 * images[:23].astype(float) + 0.5, 0, 1)
    assert np.abs(x - exact).max() <= 0.5 + 1e-3
    assert x.std() > 10
    # The logits are those of the images before rounding.
    np.testing.assert_allclose(logits, TEACHER(images)[:23], rtol=1e-5, atol=1e-5)
    assert [entry.name for entry in path.parent.iterdir()] == ["images.npz"]
    assert len(load_dataset("npz", path)) == 23


def test_a_folder_of_pngs(workdir, tmp_path):
    assert sample(workdir, tmp_path / "images.npz") == 0
    assert sample(workdir, f"{tmp_path}/images/") == 0
    folder = tmp_path / "images"
    with np.load(tmp_path / "images.npz") as file, np.load(folder / "logits.npz") as beside:
        x, y = file["x"], file["y"]
        np.testing.assert_array_equal(beside["y"], y)
        np.testing.assert_array_equal(beside["logits"], file["logits"])
    files = sorted(folder.glob("*/*.png"), key=lambda path: path.name)
    assert [path.parent.name for path in files] == [str(label) for label in y]
    for path, image in zip(files, x, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    dataset = load_dataset("folder", folder)
    assert (len(dataset), len(dataset.class_names)) == (23, 10)


def test_classes_keep_their_order_as_text(tmp_path):
    images, labels = np.zeros((1, 4, 4, 3), np.uint8), np.array([2])
    samples._write_folder(tmp_path / "images", images, labels, np.zeros((1, 12)))
    names = sorted(path.name for path in (tmp_path / "images").iterdir() if path.is_dir())
    assert names == [f"{label:02}" for label in range(12)]
    assert [path.parent.name for path in (tmp_path / "images").glob("*/*.png")] == ["02"]


def test_more_images_begin_with_the_same(workdir):
    few, many = (samples.make_samples(workdir, count) for count in (7, 300))
    for one, other in zip(few, many, strict=True):
        assert (len(one), len(other)) == (7, 300)
        np.testing.assert_array_equal(one, other[:7])
    x, y, _ = many
    assert not np.array_equal(x[:40], x[260:])  # another batch, drawn anew
    np.testing.assert_array_equal(np.bincount(y), [30] * 10)


@pytest.mark.parametrize("name", ["images.npz", "images/"])
def test_overwriting_is_asked_for(workdir, tmp_path, capfd, name):
    output = f"{tmp_path}/{name}"
    assert sample(workdir, output) == 0
    before = contents(tmp_path)
    assert sample(workdir, output, count=5) == 2
    assert "exists; --overwrite replaces it." in capfd.readouterr().err
    assert contents(tmp_path) == before
    assert sample(workdir, output, "--overwrite", count=5) == 0
    logits = tmp_path / ("images.npz" if name.endswith("npz") else "images/logits.npz")
    assert len(np.load(logits)["y"]) == 5
    assert len(list(tmp_path.glob("images/*/*"))) == (0 if name.endswith("npz") else 5)


@pytest.mark.parametrize("name", ["images.npz", "images/"])
def test_nothing_is_half_written(workdir, tmp_path, capfd, monkeypatch, name):
    (tmp_path / "images").mkdir()

    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(samples.np, "savez", full)
    assert sample(workdir, f"{tmp_path}/{name}") == 2
    assert "No space left on device" in capfd.readouterr().err
    assert list(tmp_path.rglob("*")) == [tmp_path / "images"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--count=0"], "count must be at least 1, not 0."),
        (["--count=many"], "--count=many: it must be an integer."),
        (
            ["--output={folder}/file.npz", "--overwrite"],
            "is not a set of samples that adadfq wrote",
        ),
        (["--output={folder}/file.npz/x.npz"], "file.npz' is a file."),
        (["--workdir="], "--workdir=DIR is missing"),
        (["--output="], "--output=PATH is missing"),
        (["--workdir={folder}"], "holds no run"),
        (["--output={folder}/images.zip"], "must be FILE.npz, or a folder"),
        (["--output={folder}/folder.npz"], "is a folder already"),
        (["--output={folder}/file.npz/"], "is a file already"),
        (["--output={folder}", "--overwrite"], "is not a set of samples that adadfq wrote"),
        (["--output={folder}/mine", "--overwrite"], "is not a set of samples that adadfq wrote"),
    ],
)
def test_bad_input_is_one_sentence(workdir, tmp_path, sentence, argv, words):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file.npz").write_text("mine")
    (tmp_path / "mine" / "0").mkdir(parents=True)
    (tmp_path / "mine" / "0" / "a.png").write_text("mine")
    before = contents(tmp_path)
    argv = [word.format(folder=tmp_path) for word in argv]
    assert words in sentence(["sample", *words_of(workdir, tmp_path / "images.npz", *argv)])
    assert contents(tmp_path) == before


def test_count_is_needed(workdir, tmp_path, capfd):
    output = f"--output={tmp_path / 'images.npz'}"
    assert main.run(["sample", f"--workdir={workdir}", output]) == 2
    assert "--count=N is missing: how many images." in capfd.readouterr().err
