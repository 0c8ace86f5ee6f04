"""Checks of a configuration, before a network or a file is opened."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from adadfq_jax.config.fields import (
    DATA_SOURCES,
    EXPORT_FORMATS,
    FROM_METHOD,
    FROM_TEACHER,
    default_config,
    flatten,
)
from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.game.methods import KL_REDUCTIONS, METHODS
from adadfq_jax.game.optimizers import STUDENT_OPTIMIZERS
from adadfq_jax.models.generator import CONDITIONINGS
from adadfq_jax.models.layers import PRECISIONS
from adadfq_jax.quantization.bits import check_bits, parse_override
from adadfq_jax.quantization.ranges import RANGE_RULES
from adadfq_jax.teachers.normalisation import fault

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

_BELOW_ONE = ("generator.beta1", "generator.beta2", "student.momentum")


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
    for field, constant in METHODS[method].defaults.items():
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
        constant = METHODS[config.game.method].defaults[field]
        defaults[field] = METHODS["adadfq"].defaults[field] if constant is None else constant
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
