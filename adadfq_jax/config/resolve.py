"""A run's whole configuration: as given, with all that follows from its teacher and images."""

from typing import Any

import ml_collections

from adadfq_jax.config import recipes
from adadfq_jax.config.bits_file import with_files
from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import FIELDS, Filler, filled_by
from adadfq_jax.config.kinds import NUMBERS
from adadfq_jax.data.unlabelled import Unlabelled
from adadfq_jax.errors import ConfigError
from adadfq_jax.models.network import Teacher


def resolve(
    config: ml_collections.ConfigDict, teacher: Teacher, images: Unlabelled | None = None
) -> ml_collections.ConfigDict:
    """Returns a run's whole configuration: as given, with all that follows from its teacher.

    Args:
      config: as given, checked by `validate`.
      teacher: the run's.
      images: the run's `samples.images`, from `images_of`; None without any, and where a step is
        timed or compiled.

    Raises:
      ConfigError: a field contradicts the teacher or the images, or cannot be used with what
        follows from them; or a file of bit-widths is of another network.
    """
    config = config.copy_and_resolve_references()
    if images is None and config.samples.images is not None and config.samples.images_share:
        raise ConfigError(
            f"samples.images={config.samples.images!r} are for runs: leave it unset where steps "
            "are timed or compiled."
        )
    _take_over(config, {name: getattr(teacher, _last(name)) for name in filled_by(Filler.TEACHER)})
    _take_over(config, _of_images(images))
    # What a file says is the run's identity, and not the file's name.
    config.quant.overrides = with_files(config.quant.overrides, teacher, config.quant.sums)
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    validate(config)
    return config


def _last(name: str) -> str:
    return name.rpartition(".")[-1]


def _of_images(images: Unlabelled | None) -> dict[str, Any]:
    """Returns the fields that follow from a run's images: their defaults where it has none."""
    names = filled_by(Filler.IMAGES)
    if images is None:
        return {name: FIELDS[name].default for name in names}
    return {name: getattr(images, _last(name).removeprefix("images_")) for name in names}


def _take_over(config: ml_collections.ConfigDict, truth: dict[str, Any]) -> None:
    """Writes into a configuration what its teacher is, or its images.

    Raises:
      ConfigError: the configuration states something else.
    """
    for field, true in truth.items():
        section, _, name = field.rpartition(".")
        stated = config[section][name]
        true = tuple(true) if FIELDS[field].kind is NUMBERS else true
        if stated and stated != true:
            owner = FIELDS[field].filled_by
            verb = "have" if owner is Filler.IMAGES else "has"
            raise ConfigError(f"{field} says {stated}, but {owner.value} {verb} {true}.")
        config[section][name] = true
