"""Normalisations in units of 0 to 255: refused where they are given, or divided once."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from adadfq_jax import load_teacher, save_teacher
from adadfq_jax.cli import main
from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import default_config
from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.teachers.convert import convert
from adadfq_jax.teachers.normalisation import NORMALISATIONS, in_unit_pixels
from adadfq_jax.teachers.stated import Stated
from tests import torch_networks as nets
from tests.conftest import make_teacher

MEAN, STD = NORMALISATIONS["imagenet"]
MEAN_255, STD_255 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
ONES, ZEROS = (1.0,) * 3, (0.0,) * 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "teacher.pth"
    torch.save(nets.disturb(nets.original_cifar(1, "shortcut")).state_dict(), path)
    return path


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        (MEAN_255, STD_255, r"give mean=0.485,0.456,0.406 and std=0.229,.*\(the preset imagenet\)"),
        ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7), r"give mean=0.491373,.*\(the preset cifar10\)"),
        (
            (127.5,) * 3,
            (127.5,) * 3,
            r"give mean=0.5,0.5,0.5 and std=0.5,0.5,0.5, or --pixel_units",
        ),
        (MEAN_255, ONES, "mean 123.675,.* and std 1,1,1 .*give .* and std=0.00392157,"),
        (ZEROS, (255,) * 3, "^std 255,.*give std=1,1,1, or --pixel_units=255"),
        ((0.5, 30, 40), (50,) * 3, "^mean 0.5,30,40 and std"),
        # One of the two is right already; nothing divides one of them alone.
        (MEAN, STD_255, r"^std 58.395,.*give std=0.229,0.224,0.225 \(the preset imagenet\)\.$"),
        (MEAN_255, STD, r"^mean 123.675,.*give mean=0.485,0.456,0.406 \(the preset imagenet\)\.$"),
        # In no units.
        (MEAN, tuple(1 / x for x in STD), "^std 4.36681,.* cannot be of pixels in .0, 1."),
        (MEAN_255, tuple(x * x for x in STD_255), "^mean 123.675,.* and std 3409.98,.* cannot be"),
        (tuple(-x for x in MEAN), STD, "^mean -0.485,.* cannot be"),
        (MEAN, tuple(x / 255 for x in STD), "^std 0.000898039,.* cannot be"),
        ((float("inf"),) * 3, STD, "mean must be numbers, one for each"),
        (MEAN, (0.2, 0.0, 0.2), "std must be positive numbers"),
    ],
)
def test_what_cannot_be_of_pixels_in_0_to_1_is_refused(checkpoint, mean, std, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(checkpoint, mean=mean, std=std)


@pytest.mark.parametrize(
    "kept",
    [
        *NORMALISATIONS.values(),
        ((0.5,) * 3, (0.5,) * 3),
        (ZEROS, ONES),
        (ZEROS, (1 / 255,) * 3),
        (MEAN, (0.0039,) * 3),  # rounded
        ((0.1307,) * 3, (0.3081,) * 3),
        ((1.0,) * 3, (0.5,) * 3),
    ],
)
def test_what_networks_are_trained_with_is_kept(kept):
    assert in_unit_pixels(*kept) == kept


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (MEAN_255, STD_255, (MEAN, STD)),
        (MEAN_255, ONES, (MEAN, (0.00392156862745,) * 3)),
        (ZEROS, ONES, (ZEROS, (0.00392156862745,) * 3)),
        (ZEROS, (255,) * 3, (ZEROS, ONES)),
    ],
)
def test_units_of_255_are_divided_once(tmp_path, checkpoint, mean, std, expected):
    given = {"mean": mean, "std": std, "pixel_units": 255}
    teacher = convert(checkpoint, tmp_path / "teacher.safetensors", Stated(**given))
    assert (teacher.mean, teacher.std) == expected
    again = load_teacher(tmp_path / "teacher.safetensors", **given)
    assert (again.mean, again.std) == expected
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    normalised = (image - np.float32(mean)) / np.float32(std)
    np.testing.assert_allclose(teacher(image), teacher(normalised), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("mean", "std", "units", "message"),
    [
        (MEAN, STD, 255, r"units of 0 to 1 \(the preset imagenet\).*leave pixel_units away"),
        (ZEROS, STD, 255, "^std 0.229,.*leave pixel_units away"),
        (MEAN, STD_255, 255, "^mean 0.485,.*give mean=123.675,116.28,103.53"),
        (MEAN_255, STD, 255, "^std 0.229,.*give std=58.395,57.12,57.375"),
        (MEAN_255, tuple(x * x for x in STD_255), 255, "cannot be of pixels from 0 to 255"),
        ((300,) * 3, STD_255, 255, "cannot be of pixels from 0 to 255"),
        ((), (), 255, "have to be given with it"),
        (MEAN_255, (), 255, "have to be given with it"),
        (MEAN, STD, 65535, "pixel_units must be 1 or 255, not 65535"),
    ],
)
def test_other_units_than_the_numbers_are_refused(checkpoint, mean, std, units, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(checkpoint, mean=mean, std=std, pixel_units=units)


def test_own_files_and_configurations_too(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_teacher(make_teacher(), path)
    with safetensors.safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["adadfq"])
    del described["checksum"]
    described |= {"mean": MEAN_255, "std": STD_255}
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, path, {"adadfq": json.dumps(described)})
    with pytest.raises(TeacherError, match=r"by its metadata: .*give mean=0.485,.*imagenet"):
        load_teacher(path)
    with pytest.raises(TeacherError, match=r"cannot be written: .*give mean=0.485,.*imagenet"):
        save_teacher(dataclasses.replace(make_teacher(), mean=MEAN_255, std=STD_255), path)
    config = default_config()
    config.data.mean, config.data.std = MEAN_255, STD_255
    with pytest.raises(ConfigError, match=r"data\.std: .*give mean=0.485,.*imagenet"):
        validate(config)


def test_the_verbs(tmp_path, checkpoint, capfd, sentence):
    output, given = tmp_path / "t.safetensors", ["--mean=123.675,116.28,103.53"]
    given += ["--std=58.395,57.12,57.375"]
    arguments = ["convert", f"--input={checkpoint}", f"--output={output}", *given]
    images = tmp_path / "x.npz"
    np.savez(images, x=np.zeros((2, 32, 32, 3), np.uint8), y=np.zeros(2, int))
    on_images = ["--source=npz", f"--path={images}", "--cache="]
    for argv in (arguments, ["evaluate", f"--teacher={checkpoint}", *given, *on_images]):
        told = "give mean=0.485,0.456,0.406 and std=0.229,0.224,0.225 (the preset imagenet)"
        assert told in sentence(argv)
        assert not output.exists()
    assert main.run([*arguments, "--pixel_units=255"]) == 0
    shown = capfd.readouterr().out
    assert "0.485, 0.456, 0.406" in shown
    assert "0.229, 0.224, 0.225" in shown
    given.append("--pixel_units=255")
    assert main.run(["evaluate", f"--teacher={output}", *given, *on_images]) == 0
