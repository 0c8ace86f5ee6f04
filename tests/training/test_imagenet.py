"""ImageNet's configurations from end to end: a small run, and those of 224 pixels as slow tests."""

import importlib
import json

import numpy as np
import pytest
from PIL import Image

from adadfq_jax.errors import DataError, StoppedError
from adadfq_jax.game.step import Game
from adadfq_jax.training import held_out as student_module
from adadfq_jax.training import quantize
from adadfq_jax.training.student import load_student
from tests.conftest import make_teacher, settled
from tests.game.test_step import make_game
from tests.training.test_quantize import stop_at


def make_images(folder, classes, size, count=60):
    """Writes noise as JPEG files of one folder a class, most of which are empty."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"n{label:08}").mkdir(parents=True)
    for index in range(count):
        pixels = random.integers(0, 256, (size + 9, size + 20, 3), np.uint8)
        label = index * 7 % classes
        Image.fromarray(pixels).save(folder / f"n{label:08}" / f"{index}.jpeg")


def play(
    tmp_path,
    config_name,
    architecture,
    size,
    classes,
    epochs,
    steps_per_epoch,
    fields,
    warmup=1,
):
    """Plays all phases, stopped before the last two steps and resumed."""
    teacher = settled(make_teacher(architecture=architecture, size=size, classes=classes))
    images = tmp_path / "images"
    make_images(images, classes, size)
    config = importlib.import_module(f"configs.{config_name}").get_config("w4a4")
    config.update_from_flattened_dict(
        {
            "teacher.architecture": architecture,
            "teacher.image_size": size,
            "teacher.classes": classes,
            "data.source": "folder",
            "data.path": str(images),
            "data.mean": (),
            "data.std": (),
            "generator.conditioning": "batch_norm",
            "devices": 1,
            "calibration_epochs": 1,
            "warmup_epochs": 1 + warmup,
            "epochs": epochs,
            "steps_per_epoch": steps_per_epoch,
            "log_every_steps": 1,
            "evaluation.every_epochs": 1,
            "evaluation.subset": 40,
            "evaluation.batch_size": 32,
            "evaluation.generated_images": 32,
        }
        | fields
    )
    workdir, total = tmp_path / "run", epochs * steps_per_epoch
    with pytest.raises(StoppedError, match=f"step {total - 2} of {total}"):
        quantize.quantize(
            config, teacher, workdir, should_stop=stop_at(total - 2), show_progress=False
        )
    student = quantize.quantize(config, teacher, workdir, show_progress=False)
    assert student.result.steps == total
    assert student.result.evaluation_images == 60
    assert student.result.calibrated_images == 40
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "phase" in line] == [*range(1, total + 1)]
    assert [line["phase"] for line in lines if "phase" in line] == [
        name
        for name, count in (("calibrate", 1), ("warmup", warmup), ("play", epochs - 1 - warmup))
        for _ in range(count * steps_per_epoch)
    ]
    measured = [line["images"] for line in lines if "evaluation" in line]
    assert measured == [40] * (epochs - 1 - warmup) + [60]
    assert (workdir / "samples.png").exists()
    logits = student(np.zeros((2, size, size, 3), np.uint8))
    np.testing.assert_array_equal(
        logits, load_student(workdir)(np.zeros((2, size, size, 3), np.uint8))
    )
    assert logits.shape == (2, classes)
    return student


def test_a_small_one(tmp_path):
    """8 pixels, 20 classes, of all the networks the smallest; without a warm-up."""
    fields = {"batch_size": 8}
    play(tmp_path, "imagenet_resnet18", "resnet8_cifar", 8, 20, 3, 2, fields, warmup=0)


@pytest.mark.imagenet
@pytest.mark.parametrize(
    ("config_name", "architecture", "epochs", "steps_per_epoch", "fields"),
    [
        ("imagenet_resnet18", "resnet18", 5, 4, {}),
        (
            "imagenet_mobilenet_v2",
            "mobilenet_v2",
            3,
            2,
            {"remat": True, "precision.teacher": "bfloat16", "precision.generator": "bfloat16"},
        ),
        ("imagenet_resnet50", "resnet50_stride3x3", 3, 2, {"remat": True}),
    ],
)
def test_at_full_size(tmp_path, config_name, architecture, epochs, steps_per_epoch, fields):
    """224 pixels, 1000 classes, batches of 16, whole networks of random weights."""
    student = play(tmp_path, config_name, architecture, 224, 1000, epochs, steps_per_epoch, fields)
    assert student.result.step_bytes < 16e9


def test_too_few_images_for_the_subset(small_config, teacher, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((9, 8, 8, 3), np.uint8), y=np.arange(9))
    small_config.data.source, small_config.data.path = "npz", str(tmp_path / "a.npz")
    small_config.evaluation.subset = 10
    with pytest.raises(DataError, match="has 9 images, too few for a subset of 10"):
        quantize.quantize(small_config, teacher, tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()


def test_large_images_are_made_a_few_at_a_time(small_config, monkeypatch):
    """A batch of all classes of ImageNet would take 48 GB; classes still come in turn."""
    assert student_module.generator_batch_size(224) == 41
    assert student_module.generator_batch_size(32) == 2048
    teacher = make_teacher()
    game = make_game(small_config, teacher)
    state = game.init(small_config, teacher.variables)
    monkeypatch.setattr(student_module, "_MOST_PIXELS", 4 * 8 * 8)
    counts = []
    sample = Game.sample

    def counted(game, state, index, count):
        counts.append(count)
        return sample(game, state, index, count)

    monkeypatch.setattr(Game, "sample", counted)
    images, labels = student_module.generate(game, state, 11, 256)
    assert images.shape == (11, 8, 8, 3)
    assert labels.tolist() == [*range(10), 0]
    assert counts == [4, 4, 4]
