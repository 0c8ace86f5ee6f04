"""Every constant of a run: its field, its default, its meaning, its check.

The defaults are the paper's for ResNet-20 on CIFAR (Qian et al., CVPR 2023, and the authors'
program). `IDENTITY_EXEMPT` lists the fields that may change when a run is resumed; all others make
up its identity.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.methods import KL_REDUCTIONS, METHODS
from adadfq_jax.models.bits import check_bits, parse_bits, parse_override
from adadfq_jax.models.generator import CONDITIONINGS
from adadfq_jax.models.layers import PRECISIONS
from adadfq_jax.optimizers import STUDENT_OPTIMIZERS
from adadfq_jax.quantizers import RANGE_RULES
from adadfq_jax.teachers.normalisation import fault

DATA_SOURCES = ("none", "npz", "folder", "tfds:NAME")

# By format of exported students, the suffixes of its files; the first one is usual.
EXPORT_FORMATS = {
    "integers": (".safetensors",),
    "onnx": (".onnx",),
    "stablehlo": (".stablehlo",),
    "pytorch": (".pth", ".pt"),
}

# Where things lie, how often they are written, on how many devices it runs, how long it goes on.
IDENTITY_EXEMPT = (
    "epochs",
    "devices",
    "remat",
    "steps_per_dispatch",
    "teacher.path",
    "data.source",
    "data.path",
    "data.labels",
    "evaluation",
    "checkpoint",
    "log_every_steps",
    "export",
)

# Part of a run's identity where its student moves by Adam, whose rate falls over the whole game.
_OF_ADAM = ("epochs", "student.relative_rate")

_TYPES = {int: "an integer", float: "a finite number", str: "text", bool: "True or False"}

# What a field must be besides its type.
_AT_LEAST = {
    "seed": 0,
    "batch_size": 2,  # BatchNorm
    "epochs": 1,
    "steps_per_epoch": 1,
    "calibration_epochs": 1,
    "devices": 0,
    "teacher.image_size": 0,
    "teacher.classes": 0,
    "steps_per_dispatch": 0,
    "log_every_steps": 1,
    "game.alpha_ds": 0,
    "game.alpha_as": 0,
    "game.margin_weight": 0,
    "game.beta": 0,
    "game.gamma": 0,
    "student.weight_decay": 0,
    "samples.procedural": 0,
    "samples.cutmix": 0,
    "evaluation.every_epochs": 1,
    "evaluation.subset": 0,
    "evaluation.batch_size": 1,
    "evaluation.generated_images": 1,
    "checkpoint.every_seconds": 0,
    "checkpoint.every_steps": 0,
}
_POSITIVE = (
    "game.temperature",
    "generator.learning_rate",
    "generator.decay",
    "student.learning_rate",
    "student.decay",
    "student.relative_rate",
)
# What may be None until a teacher is known: `recipes` then fills in what its network wants.
FROM_TEACHER = {
    "warmup_epochs": int,
    "game.temperature": float,
    "generator.conditioning": str,
    "generator.milestones": tuple,
    "student.learning_rate": float,
    "student.milestones": tuple,
}
# What is None until then, unless it is set: the method has its own, by network for some.
FROM_METHOD = {
    "game.alpha_ds": float,
    "game.alpha_as": float,
    "game.lambda_l": float,
    "game.lambda_u": float,
    "game.gamma": float,
    "quant.ranges": str,
    "quant.learned_ranges": bool,
    "samples.procedural": int,
    "samples.cutmix": float,
    "student.optimizer": str,
}
# What runs played by before there were such fields.
_BEFORE = {
    "game.method": "adadfq",
    "game.margin_weight": 1.0,
    "game.kl_reduction": "elements",
    "quant.ranges": "minmax",
    "quant.learned_ranges": False,
    "samples.procedural": 0,
    "samples.cutmix": 0.0,
    "student.optimizer": "sgd",
    "generator.conditioning": "embedding",
    "precision.teacher": "float32",
    "precision.generator": "float32",
    "precision.student": "float32",
}
_BELOW_ONE = ("generator.beta1", "generator.beta2", "student.momentum")


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
    config.remat = False  # make the activations inside of blocks again, instead of keeping them
    config.steps_per_dispatch = 0  # steps per call of the device; 0: 1 on CPU, else 50
    config.export = ""  # formats in which a finished run leaves its student: "integers,onnx"
    config.log_every_steps = 50

    config.teacher = teacher = ml_collections.ConfigDict()
    teacher.path = config_dict.placeholder(str)  # a checkpoint; not needed for one in memory
    teacher.architecture = config_dict.placeholder(str)  # needed where the file does not say
    teacher.image_size = 0  # pixels; 0: as its file says
    teacher.classes = 0  # 0: as its file says
    teacher.digest = config_dict.placeholder(str)  # SHA-256 of its variables; filled in by the run

    config.data = data = ml_collections.ConfigDict()
    data.source = "none"  # the evaluation set: "none", "npz", "folder" or "tfds:NAME"
    data.path = config_dict.placeholder(str)  # file, folder, or tensorflow-datasets' data_dir
    data.labels = config_dict.placeholder(str)  # of a folder: a file with the class of each folder
    data.mean = ()  # per channel, of pixels in [0, 1]; empty: as the teacher's file says
    data.std = ()

    config.precision = precision = ml_collections.ConfigDict()
    precision.teacher = "float32"  # or "bfloat16", as its gradient to the images
    precision.generator = "float32"  # or "bfloat16": its convolutions
    precision.student = "float32"  # nothing else: its codes would not be those of its exports

    config.quant = quant = ml_collections.ConfigDict()
    quant.weight_bits = weight_bits
    quant.activation_bits = activation_bits
    quant.overrides = ()  # exceptions by layer name: ("stem_*=w8a8", "classifier=w8")

    # None here as well: the method's own; for adadfq "minmax", False, 0, 0.0 and "sgd".
    quant.ranges = config_dict.placeholder(str)  # or "least_error"
    quant.learned_ranges = config_dict.placeholder(bool)  # kernels' too, by the student's optimizer
    config.samples = samples = ml_collections.ConfigDict()
    samples.procedural = config_dict.placeholder(int)  # images of a formula for each of G's
    samples.cutmix = config_dict.placeholder(float)  # share of those cut together with one of G's

    config.game = game = ml_collections.ConfigDict()
    game.method = "adadfq"  # or "adadfq_plus", "adasg", "gdfq", an ablation: see `methods.py`
    # None: the method's own; for adadfq 0.2, 0.1, 0.1, 0.8 and 1 (`methods.py`, `recipes.py`).
    game.alpha_ds = config_dict.placeholder(float)  # weight of the disagreement loss
    game.alpha_as = config_dict.placeholder(float)  # weight of the agreement loss
    game.lambda_l = config_dict.placeholder(float)  # of H', below which samples are too hard
    game.lambda_u = config_dict.placeholder(float)  # of H', above which samples are too easy
    game.gamma = config_dict.placeholder(float)  # weight of the BatchNorm statistics loss
    game.margin_weight = 1.0  # weight of the margin loss; 0: no margin
    game.beta = 1.0  # weight of the balance loss
    game.temperature = 20.0  # T of the student's loss
    game.kl_reduction = "elements"  # of gdfq: mean over "elements" (released) or "batch" (printed)

    config.generator = generator = ml_collections.ConfigDict()
    generator.conditioning = "embedding"  # of the class; or "batch_norm", for ImageNet-size images
    generator.learning_rate = 1e-3  # Adam
    generator.beta1 = 0.5
    generator.beta2 = 0.999
    generator.milestones = (100, 200, 300)  # epochs, counted from the first calibration step
    generator.decay = 0.1  # factor on the learning rate at each milestone

    config.student = student = ml_collections.ConfigDict()
    student.optimizer = config_dict.placeholder(str)  # None: the method's; "sgd" or "adam"
    student.learning_rate = 1e-4  # of SGD, as are the next four
    student.momentum = 0.9  # Nesterov
    student.weight_decay = 1e-4  # on every parameter
    student.milestones = (100, 200, 300)
    student.decay = 0.1
    # Of Adam: highest step at 3 bits, relative to a tensor's root mean square; less at more bits.
    student.relative_rate = 5e-3

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.every_epochs = 1
    evaluation.subset = 0  # images of the measurements before the last one; 0: all
    evaluation.batch_size = 256
    evaluation.generated_images = 1024  # held-out generated images for teacher agreement

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_seconds = 60.0  # 0: never by time
    checkpoint.every_steps = 0  # 0: never by steps
    return config.lock()


def leave_to_teacher(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Empties the fields of `FROM_TEACHER`, so that they follow from the teacher's network.

    Args:
      config: of `default_config`.

    Returns:
      The same configuration, in which each of those fields can still be set.
    """
    with config.unlocked():
        for field, kind in FROM_TEACHER.items():
            config.update_from_flattened_dict({field: config_dict.placeholder(kind)})
    return config


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks everything that can be checked before a network or a file is opened.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    given = flatten(config.to_dict())
    _check_form(given)
    _check_method(given)
    config = _without_gaps(config)
    flat = flatten(config.to_dict())
    for field, least in _AT_LEAST.items():
        _require(flat[field] >= least, field, flat[field], f"at least {least}")
    for field in _POSITIVE:
        _require(flat[field] > 0, field, flat[field], "positive")
    for field in _BELOW_ONE:
        _require(0 <= flat[field] < 1, field, flat[field], "at least 0 and below 1")
    _require(config.seed < 2**32, "seed", config.seed, "below 2^32")
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
    check_bits("quant.weight_bits", config.quant.weight_bits)
    check_bits("quant.activation_bits", config.quant.activation_bits)
    for text in config.quant.overrides:
        parse_override(text)
    for name in export_formats(config):
        if name not in EXPORT_FORMATS:
            raise ConfigError(f"export names {name!r}: {nearest(name, EXPORT_FORMATS)}")

    _check_switches(config)
    rules = config.game
    _require(
        0 <= rules.lambda_l <= rules.lambda_u <= 1,
        "game.lambda_l, game.lambda_u",
        (rules.lambda_l, rules.lambda_u),
        "0 <= lambda_l <= lambda_u <= 1",
    )
    for field in ("generator.milestones", "student.milestones"):
        milestones = flat[field]
        _require(
            all(milestone > 0 for milestone in milestones)
            and len(set(milestones)) == len(milestones),
            field,
            milestones,
            "distinct positive epochs",
        )

    data = config.data
    check_source("data.source", data.source)
    if data.source in ("npz", "folder") and data.path is None:
        raise ConfigError(f"data.source={data.source!r} needs data.path: where it lies.")
    if data.labels is not None and data.source != "folder":
        raise ConfigError(
            f"data.labels={data.labels!r} says which class a folder is, but data.source is "
            f"{data.source!r}: leave it unset, or set data.source='folder'."
        )
    _require(
        len(data.mean) == len(data.std) and len(data.mean) in (0, 3),
        "data.mean, data.std",
        (data.mean, data.std),
        "both empty, or three numbers each",
    )
    _require(all(value > 0 for value in data.std), "data.std", data.std, "positive")
    if found := fault(data.mean, data.std):
        raise ConfigError(f"data.mean, data.std: {found}")


def check_source(what: str, source: str) -> None:
    """Raises ConfigError where an evaluation set's source is unknown; `what` names the setting."""
    if source not in DATA_SOURCES[:-1] and not re.fullmatch("tfds:.+", source):
        raise ConfigError(f"unknown {what} {source!r}: {nearest(source, DATA_SOURCES)}")


def _check_method(flat: Mapping[str, Any]) -> None:
    for field, known in (("game.method", METHODS), ("game.kl_reduction", KL_REDUCTIONS)):
        _check_name(field, flat[field], known)
    method = flat["game.method"]
    for field, constant in METHODS[method].constants.items():
        if constant is None and flat[field] is not None:
            raise ConfigError(
                f"{field}={flat[field]!r} means nothing to {method}, whose losses have no such "
                "term: leave it unset."
            )


def _check_name(field: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {field} {value!r}: {nearest(value, known)}")


def _check_switches(config: ml_collections.ConfigDict) -> None:
    """Checks the parts that methods are built of against each other; none is None any more."""
    _check_name("quant.ranges", config.quant.ranges, RANGE_RULES)
    _check_name("generator.conditioning", config.generator.conditioning, CONDITIONINGS)
    for part in ("teacher", "generator"):
        _check_name(f"precision.{part}", config.precision[part], PRECISIONS)
    if config.precision.student != "float32":
        raise ConfigError(
            "the student's quantizers, ranges and updates stay in float32, so precision.student "
            f"must be 'float32', not {config.precision.student!r}; precision.teacher and "
            "precision.generator can be 'bfloat16'."
        )
    _check_name("student.optimizer", config.student.optimizer, STUDENT_OPTIMIZERS)
    _require(config.samples.cutmix <= 1, "samples.cutmix", config.samples.cutmix, "at most 1")
    if config.quant.learned_ranges and config.student.optimizer != "adam":
        raise ConfigError(
            "quant.learned_ranges=True needs student.optimizer='adam', whose steps are relative to "
            f"what they change, not {config.student.optimizer!r}; or quant.learned_ranges=False."
        )
    if config.samples.cutmix and not config.samples.procedural:
        raise ConfigError(
            f"samples.cutmix={config.samples.cutmix} cuts procedural images together with "
            "generated ones, and samples.procedural=0 draws none; set it to 1 or more."
        )
    if config.samples.procedural and METHODS[config.game.method].needs_labels:
        raise ConfigError(
            f"samples.procedural={config.samples.procedural} does not go with "
            f"{config.game.method}, whose student learns labels: procedural images have none."
        )


def _without_gaps(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Puts something valid wherever a field waits for the teacher or is left to the method."""
    config = config.copy_and_resolve_references()
    defaults = flatten(default_config().to_dict())
    defaults["warmup_epochs"] = config.calibration_epochs
    for field in FROM_METHOD:
        constant = METHODS[config.game.method].constants[field]
        defaults[field] = METHODS["adadfq"].constants[field] if constant is None else constant
    flat = flatten(config.to_dict())
    config.update_from_flattened_dict(
        {field: defaults[field] for field in (*FROM_TEACHER, *FROM_METHOD) if flat[field] is None}
    )
    return config


def _check_form(flat: Mapping[str, Any]) -> None:
    """Checks that every field is there, that no other is, and that each has its default's type."""
    for field in flat:
        check_field(field)
    for field, default in flatten(default_config().to_dict()).items():
        if field not in flat:
            raise ConfigError(f"the configuration lacks {field}; start from default_config().")
        value = flat[field]
        if value is None and field in (*FROM_TEACHER, *FROM_METHOD):
            continue
        if field in FROM_METHOD:
            kind = FROM_METHOD[field]
            holds, right = _has_type(value, kind), _TYPES[kind]
        elif isinstance(default, tuple):
            kind = str if field == "quant.overrides" else float
            holds = isinstance(value, tuple) and all(_has_type(entry, kind) for entry in value)
            right = 'like ("stem_*=w8a8",)' if kind is str else "a tuple of finite numbers"
        elif default is None:
            holds, right = value is None or _has_type(value, str), "text or None"
        else:
            kind = type(default)
            holds, right = _has_type(value, kind), _TYPES[kind]
        _require(holds, field, value, right)


def _has_type(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def export_formats(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the formats in which a run leaves its student: `export`, taken apart."""
    return [name.strip() for name in config.export.split(",") if name.strip()]


def check_field(field: str) -> None:
    """Raises ConfigError where no configuration has a field of this dotted name."""
    known = flatten(default_config().to_dict())
    if field not in known:
        raise ConfigError(f"unknown field {field!r}: {nearest(field, known)}")


def _require(holds: bool, field: str, value: Any, right: str) -> None:
    if not holds:
        raise ConfigError(f"{field} must be {right}, not {value!r}.")


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that make a run this run, flat, by dotted name, as JSON would store them.

    Args:
      config: a configuration, or a `config.json` read back.
    """
    flat = _BEFORE | flatten(json.loads(to_json(config)))

    def counts(name: str) -> bool:
        if name in _OF_ADAM:
            return flat["student.optimizer"] == "adam"
        return not any(
            name == exempt or name.startswith(exempt + ".") for exempt in IDENTITY_EXEMPT
        )

    return {name: value for name, value in flat.items() if counts(name)}


def read_back(written: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a run's configuration from its `config.json`, which may lack today's fields."""
    config = default_config()
    with config.unlocked():
        config.update_from_flattened_dict(_BEFORE)
        config.update(written)
    return config


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns in words how the identities of two runs differ; nothing where they do not."""
    old, new = identity(before), identity(now)
    # That the optimizer is another says all that follows from it.
    implied = _OF_ADAM if old["student.optimizer"] != new["student.optimizer"] else ()
    return "; ".join(
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old | new)
        if old.get(name) != new.get(name) and name not in implied
    )


def to_json(config: Mapping[str, Any]) -> str:
    """Returns the whole configuration as indented JSON."""
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    return json.dumps(config, indent=2) + "\n"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of nested sections by their dotted names, each after a prefix."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
