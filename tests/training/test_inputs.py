"""Images of any number of channels and any size, from the module to the files that leave a run."""

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import adadfq_jax
from adadfq_jax.cli import main
from adadfq_jax.config.identity import read_back
from adadfq_jax.errors import ConfigError
from adadfq_jax.exporting import numpy_reader
from adadfq_jax.game import procedural
from adadfq_jax.models.generator import Generator
from adadfq_jax.reporting import write
from adadfq_jax.sweeps.table import result_line
from tests import torch_networks as nets
from tests.conftest import make_small_config

CLASSES, COUNT = 4, 24
OWN = 3  # images of a user, fewer than a batch
# Channels and pixels: one channel and a size that 4 does not divide; each of them alone.
FEW, GREY, ODD = (1, 10), (1, 28), (2, 30)


def network(channels):
    return nn.Sequential(
        *(nn.Conv2d(channels, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, groups=8), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(FEW, id="few"),
        *(
            pytest.param(images, id=name, marks=pytest.mark.networks)
            for name, images in (("grey", GREY), ("odd", ODD))
        ),
    ],
)
def run(request, tmp_path_factory):
    """A finished run on images of a form, three of them a user's, and the folder of its files."""
    channels, size = request.param
    folder = tmp_path_factory.mktemp("inputs")
    random = np.random.default_rng(0)
    shape = (COUNT, size, size, channels)[: 3 if channels == 1 else 4]
    np.savez(
        folder / "test.npz",
        x=random.integers(0, 256, shape, np.uint8),
        y=random.integers(0, CLASSES, COUNT),
    )
    teacher = adadfq_jax.from_torch(
        nets.disturb(network(channels)).eval(),
        image_size=size,
        mean=(0.5,),
        std=(0.25,),
        name="Tiny",
    )
    config = make_small_config()
    config.game.method = "adadfq_plus"
    config.warmup_epochs, config.epochs = 1, 2
    config.data.source, config.data.path = "npz", str(folder / "test.npz")
    np.savez(folder / "own.npz", x=random.integers(0, 256, (OWN, *shape[1:]), np.uint8), y=[1, 2])
    config.samples.images = str(folder / "own.npz")
    student = adadfq_jax.quantize(config, teacher, workdir=folder / "run", show_progress=False)
    return student, folder, request.param


def test_a_game_of_any_images(run):
    student, folder, (channels, size) = run
    assert len(student.mean) == len(student.std) == student.channels == channels
    assert student.result.top1 is not None
    images, _ = student.draw(5)
    assert images.shape == (5, size, size, channels)
    again = adadfq_jax.load_student(folder / "run")
    np.testing.assert_array_equal(again(images), student(images))


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".stablehlo", ".pth"])
def test_exports_of_any_images(run, tmp_path, suffix, capsys):
    student, folder, _ = run
    path = tmp_path / f"student{suffix}"
    assert adadfq_jax.export(student, path).agreement == 1
    images, _ = student.draw(COUNT)
    found = np.asarray(adadfq_jax.load_exported(path)(images))
    np.testing.assert_allclose(found, student(images), rtol=1e-3, atol=1e-3)
    arguments = [f"--model={path}", "--source=npz", f"--path={folder / 'test.npz'}", "--cache="]
    assert main.run(["evaluate", *arguments]) == 0
    top1, out = f"{student.result.top1:.2%}", capsys.readouterr().out
    assert top1 in out
    assert "not data-free: 3 images" in out
    if suffix == ".safetensors":
        assert numpy_reader.main([str(path), str(folder / "test.npz")]) == 0
        assert top1 in capsys.readouterr().out


def test_samples_of_any_images(run, tmp_path):
    student, folder, (channels, size) = run
    for output in ("some.npz", "folder/"):
        words = (f"--workdir={folder / 'run'}", f"--output={tmp_path}/{output}", "--count=6")
        assert main.run(["sample", "--cache=", *words]) == 0
    with np.load(tmp_path / "some.npz") as file:
        assert file["x"].shape == (6, size, size, channels)
    pictures = sorted((tmp_path / "folder").rglob("*.png"))
    assert len(pictures) == 6
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size == (size, size)
    if channels == 1:
        data = adadfq_jax.load_dataset("folder", tmp_path / "folder")
        with np.load(tmp_path / "some.npz") as file:
            order = np.argsort(file["y"], kind="stable")
            np.testing.assert_array_equal(data.images(student), file["x"][order])


def test_a_report_of_any_images(run):
    _, folder, _ = run
    write.write_report(folder / "run", overwrite=True)
    text = (folder / "run" / "report.html").read_text()
    assert len(text) > 10_000
    assert "; not data-free: 3 images.</p>" in text


def test_a_run_says_that_it_had_images_of_a_user(run, capsys):
    student, folder, _ = run
    assert student.result.given_images == 3
    assert json.loads((folder / "run" / "result.json").read_text())["given_images"] == 3
    assert "not data-free: 3 images" in student.result.to_text()
    assert "not data-free: 3 images" in repr(student)
    assert student._repr_html_().count("not data-free") == 1
    assert "not data-free: 3 images" in result_line(student.result)
    assert main.run(["evaluate", "--cache=", f"--workdir={folder / 'run'}"]) == 0
    assert f"after {student.result.steps} steps, not data-free: 3 images" in capsys.readouterr().out


def test_a_run_is_that_of_its_images_wherever_they_lie(run, tmp_path, capfd):
    _, folder, (channels, size) = run
    config = read_back(json.loads((folder / "run" / "config.json").read_text()))
    teacher = adadfq_jax.load_teacher(folder / "run" / "teacher.safetensors")
    shutil.copy(folder / "own.npz", tmp_path / "same.npz")
    config.samples.images = str(tmp_path / "same.npz")
    again = adadfq_jax.quantize(config, teacher, workdir=folder / "run")
    assert again.result.given_images == 3
    assert "already complete" in capfd.readouterr().err
    assert config.samples.images_count == 3
    np.savez(tmp_path / "other.npz", x=np.full((3, size, size, channels), 9, np.uint8))
    config.samples.images = str(tmp_path / "other.npz")
    with pytest.raises(ConfigError, match=r"samples\.images_\w+ says .*, but the images have"):
        adadfq_jax.quantize(config, teacher, workdir=folder / "run")
    config.samples.images_digest, config.samples.images_count = None, 0
    for images in (config.samples.images, None):
        config.samples.images = images
        with pytest.raises(ConfigError, match=r"holds another run \(samples.images_.* was "):
            adadfq_jax.quantize(config, teacher, workdir=folder / "run")


def test_a_dry_run_tells_that_labels_are_ignored(run, tmp_path, capsys):
    _, folder, _ = run
    words = [
        "--config=teacher:w4a4",
        f"--config.teacher.path={folder / 'run' / 'teacher.safetensors'}",
        "--config.game.method=adadfq_plus",
        f"--config.samples.images={folder / 'own.npz'}",
        f"--workdir={tmp_path / 'run'}",
        "--dry_run",
        "--cache=",
    ]
    assert main.run(["quantize", *words]) == 0
    own = f"not data-free: 3 images of {folder / 'own.npz'}, for the student alone"
    assert f"; {own}; their labels are ignored; workdir" in capsys.readouterr().out


def test_onnx_of_raw_pixels(run, tmp_path):
    student, _, (channels, size) = run
    adadfq_jax.export(student, tmp_path / "raw.onnx", raw_pixels=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, size, size, channels), np.uint8)
    found = adadfq_jax.load_exported(tmp_path / "raw.onnx")(pixels)
    np.testing.assert_allclose(found, student(pixels), rtol=1e-3, atol=1e-3)


def test_the_generators_images_are_cut_from_the_next_multiple_of_4():
    noise, labels = np.random.default_rng(0).normal(size=(3, 100)), np.arange(3)
    whole = Generator(8, 3, channels=2)
    params = whole.init(jax.random.key(0), noise, labels)
    images = whole.apply(params, noise, labels)
    for size, start in ((5, 1), (6, 1), (7, 0)):
        cut = Generator(size, 3, channels=2)
        found = cut.apply(params, noise, labels)
        np.testing.assert_array_equal(found, images[:, start:, start:][:, :size, :size])
    np.testing.assert_allclose(images.mean((0, 1, 2)), 0, atol=1e-5)


def test_procedural_images_of_any_number_of_channels():
    for channels in (1, 2, 5):
        normalisation = (0.0,) * channels, (1.0,) * channels
        images = np.asarray(procedural.draw(jax.random.key(0), np.arange(4), 13, *normalisation))
        assert images.shape == (4, 13, 13, channels)
        assert images.std((1, 2)).min() > 0.01
        if channels > 1:  # alike, and not the same
            assert np.abs(images[..., 0] - images[..., 1]).mean() > 0.001
            assert np.corrcoef(images[..., 0].ravel(), images[..., 1].ravel())[0, 1] > 0.5


def test_a_module_of_other_images_is_read():
    torch.manual_seed(0)
    module = nets.disturb(network(5)).eval()
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.2,) * 5
    teacher = adadfq_jax.from_torch(module, image_size=9, mean=mean, std=std)
    assert (teacher.mean, teacher.channels) == (mean, 5)
