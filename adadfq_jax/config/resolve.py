"""A run's whole configuration: as given, with all that follows from its teacher."""

import ml_collections

from adadfq_jax.config import recipes
from adadfq_jax.config.bits_file import with_files
from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import FIELDS, Filler, filled_by
from adadfq_jax.config.kinds import NUMBERS
from adadfq_jax.errors import ConfigError
from adadfq_jax.models.network import Teacher


def resolve(config: ml_collections.ConfigDict, teacher: Teacher) -> ml_collections.ConfigDict:
    """Returns a run's whole configuration: as given, with all that follows from its teacher.

    Args:
      config: as given, checked by `validate`.
      teacher: the run's.

    Raises:
      ConfigError: a field contradicts the teacher, or cannot be used with what follows from it, or
        a file of bit-widths is of another network.
    """
    config = config.copy_and_resolve_references()
    _take_over(config, teacher)
    # What a file says is the run's identity, and not the file's name.
    config.quant.overrides = with_files(config.quant.overrides, teacher, config.quant.sums)
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    validate(config)
    return config


def _take_over(config: ml_collections.ConfigDict, teacher: Teacher) -> None:
    """Writes into a configuration what its teacher is.

    Raises:
      ConfigError: the configuration states something else.
    """
    for field in filled_by(Filler.TEACHER):
        section, _, name = field.rpartition(".")
        stated, true = config[section][name], getattr(teacher, name)
        true = tuple(true) if FIELDS[field].kind is NUMBERS else true
        if stated and stated != true:
            raise ConfigError(f"{field} says {stated}, but the teacher has {true}.")
        config[section][name] = true
