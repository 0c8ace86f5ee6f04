"""Every constant of a run: its field, its default, its meaning, its check.

The defaults are the paper's for ResNet-20 on CIFAR (Qian et al., CVPR 2023, and the authors'
program). `IDENTITY_EXEMPT` lists the fields that may change when a run is resumed; all others make
up its identity.
"""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.models.bits import check_bits, parse_bits, parse_override

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

DATA_SOURCES = ("none", "npz")

# Where things lie, how often they are written, on how many devices it runs, how long it goes on.
IDENTITY_EXEMPT = (
    "epochs",
    "devices",
    "steps_per_dispatch",
    "teacher.path",
    "data",
    "evaluation",
    "checkpoint",
    "log_every_steps",
)


def default_config(
    bits: str | None = None, *, weight_bits: int = 4, activation_bits: int = 4
) -> ml_collections.ConfigDict:
    """Returns the complete configuration, locked: fields can be set but not added.

    Args:
      bits: both bit-widths as one word, `w4a4`; empty or None for the next two.
      weight_bits: of every convolution and dense layer, 1 to 8.
      activation_bits: of every quantized ReLU, 1 to 8.

    Raises:
      ConfigError: a bit-width is malformed or out of range.
    """
    if bits:
        weight_bits, activation_bits = parse_bits(bits)
    config = ml_collections.ConfigDict()

    config.seed = 0  # of every random draw
    config.batch_size = 16  # images a step, over all devices
    config.epochs = 400  # in all, calibration and warm-up included
    config.steps_per_epoch = 200
    config.calibration_epochs = 4  # first epochs, in which activation ranges follow the images
    config.warmup_epochs = 4  # epochs (calibration included) before the student learns
    config.devices = 0  # 0: all there are
    config.steps_per_dispatch = 0  # steps per call of the device; 0: 1 on CPU, else 50
    config.log_every_steps = 50

    config.teacher = teacher = ml_collections.ConfigDict()
    teacher.path = config_dict.placeholder(str)  # a checkpoint; not needed for one in memory
    teacher.architecture = config_dict.placeholder(str)  # needed where the file does not say
    teacher.digest = config_dict.placeholder(str)  # SHA-256 of its variables; filled in by the run

    config.data = data = ml_collections.ConfigDict()
    data.source = "none"  # the evaluation set: "none" or "npz"
    data.path = config_dict.placeholder(str)
    data.mean = ()  # per channel, of pixels in [0, 1]; empty: as the teacher's file says
    data.std = ()

    config.quant = quant = ml_collections.ConfigDict()
    quant.weight_bits = weight_bits
    quant.activation_bits = activation_bits
    quant.overrides = ()  # exceptions by layer name: ("stem_*=w8a8", "classifier=w8")

    config.game = game = ml_collections.ConfigDict()
    game.alpha_ds = 0.2  # weight of the disagreement loss
    game.alpha_as = 0.1  # weight of the agreement loss
    game.lambda_l = 0.1  # lower boundary of H', below which samples are too hard
    game.lambda_u = 0.8  # upper boundary of H', above which samples are too easy
    game.beta = 1.0  # weight of the balance loss
    game.gamma = 1.0  # weight of the BatchNorm statistics loss
    game.temperature = 20.0  # T of the student's loss

    config.generator = generator = ml_collections.ConfigDict()
    generator.learning_rate = 1e-3  # Adam
    generator.beta1 = 0.5
    generator.beta2 = 0.999
    generator.milestones = (100, 200, 300)  # epochs, counted from the first calibration step
    generator.decay = 0.1  # factor on the learning rate at each milestone

    config.student = student = ml_collections.ConfigDict()
    student.learning_rate = 1e-4  # SGD
    student.momentum = 0.9  # Nesterov
    student.weight_decay = 1e-4  # on every parameter
    student.milestones = (100, 200, 300)
    student.decay = 0.1

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.every_epochs = 1
    evaluation.batch_size = 256
    evaluation.generated_images = 1024  # held-out generated images for teacher agreement

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_seconds = 60.0  # 0: never by time
    checkpoint.every_steps = 0  # 0: never by steps
    return config.lock()


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks everything that can be checked before a network or a file is opened.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    for field in ("batch_size", "epochs", "steps_per_epoch", "calibration_epochs"):
        _require(config[field] >= 1, field, config[field], "at least 1")
    _require(config.seed >= 0 and config.seed < 2**32, "seed", config.seed, "in [0, 2^32)")
    _require(config.batch_size >= 2, "batch_size", config.batch_size, "at least 2 (BatchNorm)")
    _require(
        config.warmup_epochs >= config.calibration_epochs,
        "warmup_epochs",
        config.warmup_epochs,
        f"at least calibration_epochs={config.calibration_epochs}, which it includes",
    )
    _require(
        config.epochs >= config.warmup_epochs,
        "epochs",
        config.epochs,
        f"at least warmup_epochs={config.warmup_epochs}",
    )
    for field in ("devices", "steps_per_dispatch"):
        _require(config[field] >= 0, field, config[field], "0 (automatic) or more")
    _require(config.log_every_steps >= 1, "log_every_steps", config.log_every_steps, "at least 1")

    check_bits("quant.weight_bits", config.quant.weight_bits)
    check_bits("quant.activation_bits", config.quant.activation_bits)
    _require(
        isinstance(config.quant.overrides, tuple),
        "quant.overrides",
        config.quant.overrides,
        'a tuple such as ("stem_*=w8a8",)',
    )
    for text in config.quant.overrides:
        parse_override(text)

    rules = config.game
    _require(
        0 <= rules.lambda_l <= rules.lambda_u <= 1,
        "game.lambda_l, game.lambda_u",
        (rules.lambda_l, rules.lambda_u),
        "0 <= lambda_l <= lambda_u <= 1",
    )
    _require(rules.temperature > 0, "game.temperature", rules.temperature, "positive")
    for player in ("generator", "student"):
        rate = config[player].learning_rate
        _require(rate > 0, f"{player}.learning_rate", rate, "positive")
        milestones = config[player].milestones
        _require(
            all(milestone > 0 for milestone in milestones)
            and len(set(milestones)) == len(milestones),
            f"{player}.milestones",
            milestones,
            "distinct positive epochs",
        )

    data = config.data
    if data.source not in DATA_SOURCES:
        raise ConfigError(
            f"unknown data.source {data.source!r}: {nearest(data.source, DATA_SOURCES)}"
        )
    if data.source != "none" and data.path is None:
        raise ConfigError(f"data.source={data.source!r} needs data.path: the file to read.")
    _require(
        len(data.mean) == len(data.std) and len(data.mean) in (0, 3),
        "data.mean, data.std",
        (data.mean, data.std),
        "both empty, or three numbers each",
    )
    _require(all(value > 0 for value in data.std), "data.std", data.std, "positive")
    for field in ("every_epochs", "batch_size", "generated_images"):
        value = config.evaluation[field]
        _require(value >= 1, f"evaluation.{field}", value, "at least 1")


def _require(holds: bool, field: str, value: Any, right: str) -> None:
    if not holds:
        raise ConfigError(f"{field} must be {right}, not {value!r}.")


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that make a run this run, flat, by dotted name, as JSON would store them.

    Args:
      config: a configuration, or a `config.json` read back.
    """
    flat = _flatten(json.loads(to_json(config)))
    return {
        name: value
        for name, value in flat.items()
        if not any(name == exempt or name.startswith(exempt + ".") for exempt in IDENTITY_EXEMPT)
    }


def to_json(config: Mapping[str, Any]) -> str:
    """Returns the whole configuration as indented JSON."""
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    return json.dumps(config, indent=2) + "\n"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
