"""What makes a run this run: the fields that may not change when it is resumed."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from adadfq_jax.config.fields import default_config, flatten

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


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that make a run this run, flat, by dotted name, as JSON would store them.

    Args:
      config: a configuration, or a `config.json` read back.
    """
    flat = flatten(json.loads(to_json(config)))

    def counts(name: str) -> bool:
        if name in _OF_ADAM:
            return flat["student.optimizer"] == "adam"
        return not any(
            name == exempt or name.startswith(exempt + ".") for exempt in IDENTITY_EXEMPT
        )

    return {name: value for name, value in flat.items() if counts(name)}


def read_back(written: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a run's configuration from its `config.json`."""
    config = default_config()
    with config.unlocked():
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
