"""Settings of the game by network: the paper's, as far as it gives them, for any teacher.

They fill the fields that a configuration leaves open: those of `fields.Filler.NETWORK` in
`configs/teacher.py` and the files for ImageNet, those of `Filler.METHOD` everywhere. Where a field
is given several times, this counts, first of all: what the configuration says; what the method sets
over any network (`overrides_recipe` in `game/methods.py`); the network's settings here; the
method's `defaults`.
Qian et al., CVPR 2023, and the authors' program: 400 epochs of 200 steps. A shorter schedule is the
beginning of theirs: the warm-up is shortened with it, so that something is left to play, but the
learning rates do not fall before their epochs, since a student that has just begun to learn would
be left where it stands. Not so the plus: Adam's rate rises and falls over a schedule of any length.
"""

from typing import Any

import ml_collections

from adadfq_jax.config.fields import Filler, filled_by
from adadfq_jax.game.methods import METHODS

_EPOCHS = 400
# Networks of small images play by CIFAR's settings, whatever their architecture.
_SMALL = 64

_CIFAR = {
    "student.learning_rate": 1e-4,
    "milestones": (100, 200, 300),
    "game.temperature": 20.0,
    "generator.conditioning": "embedding",
    "warmup_epochs": 4,
}
_IMAGENET = {
    "student.learning_rate": 1e-5,
    "milestones": (350, 400),
    "game.temperature": 5.0,
    "generator.conditioning": "batch_norm",
    "warmup_epochs": 50,
}
_BOTTLENECK = _IMAGENET | {
    "student.learning_rate": 1e-4,
    "milestones": (150, 300, 400),
    "warmup_epochs": 100,
}

# What differs by bit-width of the weights.
_RESNET18_BITS = {4: {"game.lambda_l": 0.3}, 5: {"game.lambda_l": 0.3, "game.alpha_ds": 0.3}}
_MOBILENET_BITS = {4: {"game.alpha_ds": 0.3}}
_RESNET50_BITS = {
    3: {"game.lambda_l": 0.4},
    4: {
        "game.lambda_l": 0.3,
        "game.alpha_ds": 0.1,
        "milestones": (200, 300, 400),
        "warmup_epochs": 50,
    },
    5: {"game.lambda_l": 0.3, "milestones": (350, 400), "warmup_epochs": 50},
}

# GDFQ's own for ResNet-18, the one ImageNet network whose settings are known to us.
_GDFQ_IMAGENET = {"student.learning_rate": 1e-6, "milestones": (100, 200, 300)}


def recipe(architecture: str, image_size: int, bits: int, method: str = "adadfq") -> dict[str, Any]:
    """Returns the fields of a network's schedule of 400 epochs, `milestones` for both players.

    Args:
      architecture: its name in `registry.ARCHITECTURES`; those that the paper does not have follow
        the nearest that it has.
      image_size: side of its images in pixels.
      bits: bit-width of the weights.
      method: its name in `methods.METHODS`.
    """
    found = METHODS[method].defaults | _of_network(architecture, image_size, bits)
    found |= METHODS[method].overrides_recipe
    if method == "gdfq" and image_size > _SMALL:
        found |= _GDFQ_IMAGENET
    return found


def _of_network(architecture: str, image_size: int, bits: int) -> dict[str, Any]:
    if image_size <= _SMALL:
        return _CIFAR
    if "_stride" in architecture:  # bottlenecks
        return _BOTTLENECK | _RESNET50_BITS.get(bits, {})
    by_bits = _MOBILENET_BITS if architecture.startswith("mobilenet") else _RESNET18_BITS
    return _IMAGENET | by_bits.get(bits, {})


def fill_in(config: ml_collections.ConfigDict, architecture: str, image_size: int) -> None:
    """Sets the fields that are None to what a teacher's network wants; leaves all others.

    Args:
      config: the run's configuration, without references.
      architecture: the teacher's.
      image_size: side of its images in pixels.
    """
    found = recipe(architecture, image_size, config.quant.weight_bits, config.game.method)
    found["generator.milestones"] = found["student.milestones"] = found.pop("milestones")
    warmup = round(found["warmup_epochs"] * min(1, config.epochs / _EPOCHS))
    found["warmup_epochs"] = max(config.calibration_epochs, warmup)
    for field in filled_by(Filler.NETWORK, Filler.METHOD):
        section, _, name = field.rpartition(".")
        part = config[section] if section else config
        if part[name] is None:
            part[name] = found[field]
