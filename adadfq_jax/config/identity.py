"""What makes a run this run: the fields that may not change when it is resumed."""

import json
from collections.abc import Mapping
from typing import Any

import ml_collections

from adadfq_jax.config.fields import FIELDS, Resume, default_config, flatten


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that make a run this run, flat, by dotted name, as JSON would store them.

    Args:
      config: a configuration, or a `config.json` read back.
    """
    flat = flatten(json.loads(to_json(config)))
    fixed = [Resume.FIXED]
    if flat["student.optimizer"] == "adam":
        fixed.append(Resume.FIXED_BY_ADAM)
    return {name: value for name, value in flat.items() if _resume(name) in fixed}


def _resume(name: str) -> Resume:
    # A field that an earlier version had may have mattered.
    return FIELDS[name].resume if name in FIELDS else Resume.FIXED


def read_back(written: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns a run's configuration from its `config.json`."""
    config = default_config()
    with config.unlocked():
        config.update(written)
    return config


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Returns in words how the identities of two runs differ; nothing where they do not."""
    old, new = identity(before), identity(now)
    changed = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
    if "student.optimizer" in changed:  # which says all that follows from it
        changed = [name for name in changed if _resume(name) is not Resume.FIXED_BY_ADAM]
    return "; ".join(f"{name} was {old.get(name)!r}, is {new.get(name)!r}" for name in changed)


def to_json(config: Mapping[str, Any]) -> str:
    """Returns the whole configuration as indented JSON."""
    if isinstance(config, ml_collections.ConfigDict):
        config = config.to_dict()
    return json.dumps(config, indent=2) + "\n"
