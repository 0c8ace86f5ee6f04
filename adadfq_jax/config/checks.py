"""Checks of a configuration, before a network or a file is opened.

A run checks its configuration twice: as it is given (`validate`), before any file is opened, and
with all that follows from its teacher (`resolve.resolve`).
"""

import os
from collections.abc import Mapping
from typing import Any

import ml_collections

from adadfq_jax.config import bounds
from adadfq_jax.config.bounds import require
from adadfq_jax.config.fields import FIELDS, Filler, filled_by, find_field, flatten
from adadfq_jax.errors import ConfigError
from adadfq_jax.game.methods import METHODS
from adadfq_jax.teachers.normalisation import fault


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks everything that can be checked before a network or a file is opened.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    flat = flatten(config.to_dict())
    for name in flat:
        find_field(name)
    for name in FIELDS:
        check_alone(flat, name)
    _check_method(flat)
    flat |= _gaps_filled(flat)
    _check_schedule(flat)
    _check_margin(flat)
    _check_switches(flat)
    _check_data(flat)


def check_alone(flat: Mapping[str, Any], name: str) -> None:
    """Checks that a configuration has a field, and that its value can be used.

    Args:
      flat: the fields by dotted name.
      name: the field's.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    if name not in flat:
        raise ConfigError(f"the configuration lacks {name}; start from default_config().")
    FIELDS[name].check(flat[name])


def export_formats(config: ml_collections.ConfigDict) -> list[str]:
    """Returns the formats in which a run leaves its student: `export`, taken apart."""
    return bounds.split(config.export)


def _gaps_filled(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what can stand where a field waits for the teacher or is left to the method.

    A constant that the method lacks stays None.
    """
    values = {name: FIELDS[name].default for name in filled_by(Filler.NETWORK)}
    values["warmup_epochs"] = flat["calibration_epochs"]
    values |= METHODS[flat["game.method"]].defaults
    return {name: value for name, value in values.items() if flat[name] is None}


def _check_method(flat: Mapping[str, Any]) -> None:
    method = flat["game.method"]
    for name, constant in METHODS[method].defaults.items():
        if constant is None and flat[name] is not None:
            raise ConfigError(
                f"{name}={flat[name]!r} means nothing to {method}, whose losses have no such "
                "term: leave it unset."
            )


def _check_margin(flat: Mapping[str, Any]) -> None:
    lower, upper = flat["game.lambda_l"], flat["game.lambda_u"]
    require(
        None in (lower, upper) or lower <= upper,
        "game.lambda_l, game.lambda_u",
        (lower, upper),
        "0 <= lambda_l <= lambda_u <= 1",
    )


def _check_schedule(flat: Mapping[str, Any]) -> None:
    calibration, warmup = flat["calibration_epochs"], flat["warmup_epochs"]
    require(
        warmup >= calibration,
        "warmup_epochs",
        warmup,
        f"at least calibration_epochs={calibration}, which it includes",
    )
    epochs = flat["epochs"]
    if epochs < warmup:
        shorter = max(1, epochs // 2)
        raise ConfigError(
            f"epochs={epochs} ends before the student learns, in the {warmup} of warmup_epochs (of "
            f"which calibration_epochs takes {calibration}): give at least {warmup + 1} epochs, or "
            f"shorten both, as with --config.calibration_epochs={shorter} "
            f"--config.warmup_epochs={shorter}."
        )


def _check_switches(flat: Mapping[str, Any]) -> None:
    """Checks the parts that methods are built of against each other."""
    optimizer, procedural = flat["student.optimizer"], flat["samples.procedural"]
    if flat["quant.learned_ranges"] and optimizer != "adam":
        raise ConfigError(
            "quant.learned_ranges=True needs student.optimizer='adam', whose steps are relative to "
            f"what they change, not {optimizer!r}; or quant.learned_ranges=False."
        )
    if flat["samples.cutmix"] and not procedural:
        raise ConfigError(
            f"samples.cutmix={flat['samples.cutmix']} cuts procedural images together with "
            "generated ones, and samples.procedural=0 draws none; set it to 1 or more."
        )
    images, share = flat["samples.images"], flat["samples.images_share"]
    if images is not None and share and not procedural:
        raise ConfigError(
            f"samples.images={images!r} stand in the place of procedural images, and "
            "samples.procedural=0 has none; set it to 1 or more, the images beside each generated "
            "one."
        )
    if procedural and METHODS[flat["game.method"]].needs_labels:
        raise ConfigError(
            f"samples.procedural={procedural} does not go with {flat['game.method']}, whose "
            "student learns labels: procedural images have none."
        )


def _check_data(flat: Mapping[str, Any]) -> None:
    source, labels = flat["data.source"], flat["data.labels"]
    if source in ("npz", "folder") and flat["data.path"] is None:
        raise ConfigError(f"data.source={source!r} needs data.path: where it lies.")
    if labels is not None and source != "folder":
        raise ConfigError(
            f"data.labels={labels!r} says which class a folder is, but data.source is {source!r}: "
            "leave it unset, or set data.source='folder'."
        )
    images, path = flat["samples.images"], flat["data.path"]
    if None not in (images, path) and os.path.abspath(images) == os.path.abspath(path):
        raise ConfigError(
            f"samples.images and data.path are both {images!r}, but a student is not measured on "
            "images that it has learned from: divide them into two."
        )
    mean, std = flat["data.mean"], flat["data.std"]
    require(
        len(mean) == len(std),
        "data.mean, data.std",
        (mean, std),
        "both empty, or a number each for every channel",
    )
    if found := fault(mean, std):
        raise ConfigError(f"data.mean, data.std: {found}")
