"""The command that repeats a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adadfq_jax.config.fields import FIELDS, Filler, filled_by, flatten
from adadfq_jax.training.workdir import TEACHER

_BITS = ("quant.weight_bits", "quant.activation_bits")


def command_to_repeat(config: Mapping[str, Any], workdir: Path, devices: int | None = None) -> str:
    """Returns a command that repeats a run in a new folder.

    Args:
      config: content of the run's `config.json`.
      workdir: the run's folder, which holds the teacher.
      devices: on how many it ran, where that is known: another number rounds otherwise.
    """
    flat = flatten(config)
    flat["devices"] = flat["devices"] or devices or 0
    weight_bits, activation_bits = (flat[name] for name in _BITS)
    words = [
        "adadfq",
        "quantize",
        f"--config=teacher:w{weight_bits}a{activation_bits}",
        f"--workdir={workdir}_again",
        f"--config.teacher.path={workdir / TEACHER}",
    ]
    said = {*filled_by(Filler.TEACHER, Filler.IMAGES), "teacher.path", *_BITS}
    for name, field in FIELDS.items():
        value = flat.get(name)
        value = tuple(value) if isinstance(value, list) else value
        # Stated even where it is the default: `teacher` leaves it to the network.
        open_there = field.filled_by is Filler.NETWORK
        if name not in said and value is not None and (open_there or value != field.default):
            words.append(f"--config.{name}={value}")
    return shlex.join(words)
