"""A run's whole configuration: as given, with all that follows from its teacher."""

import ml_collections

from adadfq_jax.config import recipes
from adadfq_jax.config.checks import validate
from adadfq_jax.errors import ConfigError
from adadfq_jax.models.network import Teacher


def resolve(config: ml_collections.ConfigDict, teacher: Teacher) -> ml_collections.ConfigDict:
    """Returns a run's whole configuration: as given, with all that follows from its teacher.

    Raises:
      ConfigError: a field cannot be used, or contradicts the teacher.
    """
    config = config.copy_and_resolve_references()
    validate(config)
    _take_over(config, teacher)
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    validate(config)
    return config


def _take_over(config: ml_collections.ConfigDict, teacher: Teacher) -> None:
    """Writes into a configuration what its teacher is.

    Raises:
      ConfigError: the configuration states something else.
    """
    for section, name, true in (
        ("teacher", "architecture", teacher.architecture),
        ("teacher", "image_size", teacher.image_size),
        ("teacher", "classes", teacher.classes),
        ("teacher", "digest", teacher.digest),
        ("data", "mean", tuple(teacher.mean)),
        ("data", "std", tuple(teacher.std)),
    ):
        stated = config[section][name]
        if stated and stated != true:
            raise ConfigError(f"{section}.{name} says {stated}, but the teacher has {true}.")
        config[section][name] = true
