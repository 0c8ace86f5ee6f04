"""`configs/teacher.py`: everything follows from a converted file."""

import json
import math
import re

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from adadfq_jax.cli import main
from adadfq_jax.config import recipes
from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import Filler, default_config, filled_by, leave_to_teacher
from adadfq_jax.config.resolve import resolve
from adadfq_jax.errors import ConfigError
from adadfq_jax.models import registry
from adadfq_jax.models.network import flatten
from adadfq_jax.teachers.load import save_teacher
from adadfq_jax.training.quantize import quantize
from adadfq_jax.training.student import load_student
from tests import ROOT
from tests.conftest import make_teacher

FILE = ROOT / "configs" / "teacher.py"
# As `make_small_config`, whose compiled steps these runs share.
SHORT = (
    "--config.epochs=4",
    "--config.steps_per_epoch=3",
    "--config.calibration_epochs=1",
    "--config.warmup_epochs=2",
    "--config.batch_size=8",
    "--config.devices=1",
    "--config.evaluation.generated_images=40",
)


def filled(bits, architecture, size, **fields):
    config = leave_to_teacher(default_config(bits)).copy_and_resolve_references()
    config.update(fields)
    recipes.fill_in(config, architecture, size)
    validate(config)
    return config


def settings(config):
    return {
        "lr": config.student.learning_rate,
        "milestones": config.student.milestones,
        "T": config.game.temperature,
        "warmup": config.warmup_epochs,
        "lambda_l": config.game.lambda_l,
        "alpha_ds": config.game.alpha_ds,
    }


# The reference's table (Qian et al., CVPR 2023, and the authors' program).
CIFAR = (1e-4, (100, 200, 300), 20, 4, 0.1, 0.2)
TABLE = {
    ("resnet20_cifar", 32, "w3a3"): CIFAR,
    ("resnet20_cifar", 32, "w4a4"): CIFAR,
    ("resnet18_3x3", 32, "w5a5"): CIFAR,
    ("mobilenet_v2", 32, "w4a4"): CIFAR,
    ("resnet18", 224, "w3a3"): (1e-5, (350, 400), 5, 50, 0.1, 0.2),
    ("resnet18", 224, "w4a4"): (1e-5, (350, 400), 5, 50, 0.3, 0.2),
    ("resnet18", 224, "w5a5"): (1e-5, (350, 400), 5, 50, 0.3, 0.3),
    ("mobilenet_v2", 224, "w3a3"): (1e-5, (350, 400), 5, 50, 0.1, 0.2),
    ("mobilenet_v2_pytorchcv", 224, "w4a4"): (1e-5, (350, 400), 5, 50, 0.1, 0.3),
    ("mobilenet_v2_x0.5", 224, "w5a5"): (1e-5, (350, 400), 5, 50, 0.1, 0.2),
    ("resnet50_stride1x1", 224, "w3a3"): (1e-4, (150, 300, 400), 5, 100, 0.4, 0.2),
    ("resnet50_stride3x3", 224, "w4a4"): (1e-4, (200, 300, 400), 5, 50, 0.3, 0.1),
    ("resnet50_stride1x1", 224, "w5a5"): (1e-4, (350, 400), 5, 50, 0.3, 0.2),
}


@pytest.mark.parametrize(("key", "values"), TABLE.items(), ids=str)
def test_the_references_settings(key, values):
    architecture, size, bits = key
    config = filled(bits, architecture, size)
    assert tuple(settings(config).values()) == values
    assert config.generator.milestones == config.student.milestones


# The authors' papers and programs: AdaDFQ, AdaSG, GDFQ.
ADADFQ = {"alpha_ds": 0.2, "alpha_as": 0.1, "lambda_l": 0.1, "lambda_u": 0.8, "gamma": 1.0}
ADASG = {"alpha_ds": 0.1, "alpha_as": 0.1, "lambda_l": 0.3, "lambda_u": 0.8, "gamma": 1.0}
GDFQ = {"alpha_ds": None, "alpha_as": None, "lambda_l": None, "lambda_u": None, "gamma": 0.1}


@pytest.mark.parametrize(
    ("method", "constants"), [("adadfq", ADADFQ), ("adasg", ADASG), ("gdfq", GDFQ)]
)
@pytest.mark.parametrize("base", [default_config, lambda: leave_to_teacher(default_config())])
def test_a_methods_constants_are_defaults(method, constants, base):
    config = base().copy_and_resolve_references()
    config.game.method = method
    validate(config)
    recipes.fill_in(config, "resnet20_cifar", 32)
    validate(config)
    assert {name: config.game[name] for name in constants} == constants
    config = base().copy_and_resolve_references()
    config.game.method, config.game.gamma = method, 0.25
    recipes.fill_in(config, "resnet20_cifar", 32)
    assert {name: config.game[name] for name in constants} == constants | {"gamma": 0.25}


def test_what_a_method_fixes_goes_over_the_networks():
    def play(method):
        config = leave_to_teacher(default_config("w5a5")).copy_and_resolve_references()
        config.game.method = method
        recipes.fill_in(config, "resnet18", 224)
        return tuple(settings(config).values())

    assert play("adasg") == (1e-5, (350, 400), 5, 50, 0.3, 0.1)
    assert play("gdfq") == (1e-6, (100, 200, 300), 20, 50, None, None)
    # An ablation takes its term away and leaves the network's own settings.
    assert play("adadfq_without_l_as") == (1e-5, (350, 400), 5, 50, 0.3, 0.3)
    assert play("adadfq_without_l_ds") == (1e-5, (350, 400), 5, 50, 0.3, 0.0)


# Of the CIFAR ResNets, which are known at any depth, two.
NETWORKS = [
    name for name in registry.ARCHITECTURES if not re.match(r"resnet(?!20_|164_)\d+_cifar", name)
]


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
@pytest.mark.parametrize("epochs", [4, 400])
def test_every_network_has_valid_settings(architecture, bits, epochs):
    for size in (32, 224):
        config = filled(bits, architecture, size, epochs=epochs)
        assert None not in settings(config).values()


def test_cifar_is_the_default():
    found = filled("w4a4", "resnet20_cifar", 32)
    default = default_config("w4a4").copy_and_resolve_references()
    recipes.fill_in(default, "resnet20_cifar", 32)
    assert found.to_dict() == default.to_dict()


@pytest.mark.parametrize(("epochs", "warmup"), [(40, 5), (400, 50), (800, 50), (4, 4)])
def test_a_shorter_schedule_is_the_beginning_of_the_whole(epochs, warmup):
    config = filled("w4a4", "resnet50_stride1x1", 224, epochs=epochs)
    assert config.student.milestones == config.generator.milestones == (200, 300, 400)
    assert config.warmup_epochs == warmup


def test_what_is_set_stays():
    values = flags.FlagValues()
    argv = [
        "",
        f"--config={FILE}:w3a3",
        "--config.student.learning_rate=1",
        "--config.student.milestones=(7,)",
        "--config.game.temperature=3",
        "--config.warmup_epochs=60",
    ]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    validate(values.config)
    config = values.config.copy_and_resolve_references()
    recipes.fill_in(config, "resnet50_stride1x1", 224)
    assert tuple(settings(config).values()) == (1.0, (7,), 3.0, 60, 0.4, 0.2)
    assert config.generator.milestones == (150, 300, 400)
    assert isinstance(config.game.temperature, float)


@pytest.mark.parametrize("field", filled_by(Filler.NETWORK))
def test_open_fields_are_still_checked_when_set(field):
    values = {
        "warmup_epochs": -1,
        "generator.conditioning": "batch",
        "student.milestones": (0,),
        "generator.milestones": (2, 2),
    }
    config = leave_to_teacher(default_config())
    config.update_from_flattened_dict({field: values.get(field, math.inf)})
    with pytest.raises(ConfigError, match=field.rpartition(".")[-1]):
        validate(config)


def test_a_long_calibration_may_leave_the_warmup_open():
    config = leave_to_teacher(default_config())
    config.calibration_epochs = 20
    validate(config)
    assert filled("w4a4", "resnet20_cifar", 32, calibration_epochs=20).warmup_epochs == 20


# ---- The command line, from a file to a student -----------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_teacher(make_teacher(), folder / "teacher.safetensors")
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (50, 8, 8, 3), np.uint8), random.integers(0, 10, 50)
    np.savez(folder / "images.npz", x=images, y=labels)
    return folder


def run(files, workdir, *argv):
    return main.run(command(files, workdir, *argv))


def command(files, workdir, *argv):
    return [
        "quantize",
        f"--config={FILE}:w4a3",
        f"--config.teacher.path={files / 'teacher.safetensors'}",
        f"--workdir={workdir}",
        "--cache=",
        *SHORT,
        *argv,
    ]


def test_with_and_without_data_the_student_is_the_same(files, tmp_path, capfd):
    data = ("--config.data.source=npz", f"--config.data.path={files / 'images.npz'}")
    assert run(files, tmp_path / "blind") == 0
    assert "not measured" in capfd.readouterr().out
    assert run(files, tmp_path / "seeing", *data) == 0
    blind, seeing = load_student(tmp_path / "blind"), load_student(tmp_path / "seeing")
    assert blind.result.top1 is None
    assert 0 <= seeing.result.top1 <= 1
    arrays, others = flatten(blind.variables), flatten(seeing.variables)
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, others[name], err_msg=name)

    config = json.loads((tmp_path / "blind" / "config.json").read_text())
    teacher = make_teacher()
    assert config["teacher"]["architecture"] == "resnet8_cifar"
    assert (config["teacher"]["image_size"], config["teacher"]["classes"]) == (8, 10)
    assert (config["data"]["mean"], config["data"]["std"]) == (
        list(teacher.mean),
        list(teacher.std),
    )
    assert config["student"]["milestones"] == config["generator"]["milestones"] == [100, 200, 300]
    assert config["student"]["learning_rate"] == 1e-4
    assert config["warmup_epochs"] == 2

    # Measured afterwards, it is what the run with data measured.
    capfd.readouterr()
    argv = ["evaluate", f"--workdir={tmp_path / 'blind'}", "--json", "--cache=", "--source=npz"]
    assert main.run([*argv, f"--path={files / 'images.npz'}"]) == 0
    assert json.loads(capfd.readouterr().out)["top1"] == seeing.result.top1
    # The run is found again, by the same command.
    assert run(files, tmp_path / "blind") == 0
    assert "already complete" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["--config.data.mean=(0.5,0.5,0.4)", "--config.data.std=(0.25,0.25,0.25)"],
            ["[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.4]"],
        ),
        (
            ["--config.data.mean=(0.5,0.5,0.5)", "--config.data.std=(0.25,0.25,0.2)"],
            ["[0.25, 0.25, 0.25]", "[0.25, 0.25, 0.2]"],
        ),
        (["--config.teacher.image_size=32"], ["image_size=8", "32"]),
        (["--config.teacher.classes=100"], ["teacher.classes says 100", "has 10."]),
        (["--config.teacher.architecture=resnet20_cifar"], ["resnet8_cifar", "resnet20_cifar"]),
        (["--config.teacher.classes=-1"], ["teacher.classes must be at least 0", "-1"]),
        (["--config.data.source=tfds:"], ["unknown data.source 'tfds:'", "tfds:NAME"]),
        (["--config.data.source=folder"], ["data.source='folder' needs data.path"]),
    ],
)
def test_contradictions_show_both(files, tmp_path, sentence, argv, words):
    said = sentence(command(files, tmp_path / "run", *argv))
    for word in words:
        assert word in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher.architecture", "resnet20_cifar", "says resnet20_cifar, but .* has resnet8_cifar"),
        ("teacher.image_size", 32, "says 32, but .* has 8"),
        ("teacher.classes", 11, "says 11, but .* has 10"),
        ("data.std", (0.25, 0.25, 0.5), r"says .*0.5\), but .* has \(0.25, 0.25, 0.25\)"),
    ],
)
def test_contradictions_to_a_teacher_in_memory(small_config, teacher, field, value, message):
    if field == "data.std":
        small_config.data.mean = teacher.mean
    small_config.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=f"{field} {message}"):
        quantize(small_config, teacher, show_progress=False)


def test_images_of_a_user_are_for_runs(small_config, teacher):
    small_config.game.method, small_config.samples.images = "adadfq_plus", "own"
    with pytest.raises(ConfigError, match=r"samples\.images='own' are for runs: leave it unset"):
        resolve(small_config, teacher)


def test_statements_that_agree(small_config, teacher):
    small_config.update_from_flattened_dict(
        {
            "teacher.architecture": "resnet8_cifar",
            "teacher.image_size": 8,
            "teacher.classes": 10,
            "data.mean": teacher.mean,
            "data.std": teacher.std,
        }
    )
    student = quantize(small_config, teacher, show_progress=False)
    assert student.result.steps == 12
