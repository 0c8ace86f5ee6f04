"""The command that repeats a run."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adadfq_jax.config.fields import FROM_TEACHER, default_config, flatten
from adadfq_jax.training.workdir import TEACHER

# Fields that are read from the teacher's file.
_FROM_FILE = (
    "teacher.path",
    "teacher.architecture",
    "teacher.image_size",
    "teacher.classes",
    "teacher.digest",
    "data.mean",
    "data.std",
)


def command_to_repeat(config: Mapping[str, Any], workdir: Path) -> str:
    """Returns a command that repeats a run in a new folder, for the root of the repository.

    Args:
      config: content of the run's `config.json`.
      workdir: the run's folder, which holds the teacher.
    """
    flat = flatten(config)
    usual = flatten(default_config().to_dict())
    bits = f"w{flat['quant.weight_bits']}a{flat['quant.activation_bits']}"
    words = [
        "adadfq",
        "quantize",
        f"--config=configs/teacher.py:{bits}",
        f"--workdir={workdir}_again",
        f"--config.teacher.path={workdir / TEACHER}",
    ]
    for field, value in flat.items():
        if field in _FROM_FILE or field in ("quant.weight_bits", "quant.activation_bits"):
            continue
        value = tuple(value) if isinstance(value, list) else value
        # Such a field is written even with its default value, because configs/teacher.py leaves it
        # open for the network's recipe.
        open_there = field in FROM_TEACHER
        if value is not None and (open_there or value != usual.get(field)):
            words.append(f"--config.{field}={value}")
    return shlex.join(words)
