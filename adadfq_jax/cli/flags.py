"""The flags of the verbs: their definition, their help, and what is wrong with them."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from adadfq_jax.errors import AdaDFQError, ConfigError, nearest


def define_config(values: flags.FlagValues, verb: str, argv: Sequence[str]) -> None:
    """Defines --config, the configuration file with its fields."""
    from ml_collections import config_flags

    config_flags.DEFINE_config_file(
        "config",
        help_string="configuration file, with bit-widths: configs/digits_resnet20.py:w4a4; "
        "--config.FIELD=VALUE sets a field",
        flag_values=values,
        sys_argv=[verb, *argv],
    )


def parse_config(values: flags.FlagValues, verb: str, argv: Sequence[str]) -> Any:
    """Parses the flags of a verb that has --config; returns the configuration."""
    _check_config_flags(argv)
    parse(values, verb, argv)
    if not values["config"].present:
        raise ConfigError("--config=FILE is missing, such as --config=configs/digits_resnet20.py.")
    if not hasattr(values.config, "to_dict"):
        raise ConfigError(f"the configuration file returned {values.config!r}, not a ConfigDict.")
    return values.config


def parse(values: flags.FlagValues, verb: str, argv: Sequence[str]) -> None:
    """Parses a verb's flags; anything wrong becomes a ConfigError."""
    try:
        left_over = values([verb, *argv])[1:]
    except AdaDFQError:
        raise
    except flags.Error as error:
        raise ConfigError(_without_traceback(error)) from error
    except Exception as error:  # the configuration file is a program, which may fail in any way
        raise ConfigError(
            f"the configuration file fails with {type(error).__name__}: {one_line(error)}"
        ) from error
    if left_over:
        raise ConfigError(f"{left_over[0]!r} is not a flag; flags are written --name=value.")


def _check_config_flags(argv: Sequence[str]) -> None:
    """Checks the file of --config and the fields of --config.FIELD, before the file is executed."""
    from adadfq_jax.config.checks import check_field

    given = [word for word in argv if word.lstrip("-").partition("=")[0] == "config"]
    if len(given) > 1:
        raise ConfigError(f"--config is given {len(given)} times: {' '.join(given)}; give one.")
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        name = name.removeprefix("-").removeprefix("-") if word.startswith("-") else ""
        if name == "config":
            path = Path((value if equals else following).partition(":")[0])
            if not path.is_file():
                others = [str(other) for other in path.parent.glob("*.py")]
                hint = nearest(str(path), others) if others else "nor any other in its folder."
                raise ConfigError(f"there is no configuration file {str(path)!r}; {hint}")
        elif name.startswith("config."):
            check_field(name.removeprefix("config."))


def asks_for_help(argv: Sequence[str]) -> bool:
    """Tells whether a command line asks for help."""
    return any(word in ("-h", "--help", "-help") for word in argv)


def describe(values: flags.FlagValues, verb: str, what: str, names: Sequence[str]) -> str:
    """Returns the help of a verb: what it does, and its flags of these names."""
    described = "\n".join(f"  --{name:<14}{values[name].help}" for name in names)
    return f"usage: adadfq {verb} --flag=value …: {what}\n\n{described}"


def one_line(error: Exception) -> str:
    """Returns what an error says in one line."""
    return " ".join(str(error).split())


def _without_traceback(error: Exception) -> str:
    """ml_collections puts the traceback of a configuration file into its message."""
    first, *rest = str(error).strip().splitlines()
    whole = r"it must be a whole number, not \1"
    first = re.sub(r"invalid literal for int\(\) with base 10: (.*)", whole, first)
    first = re.sub(r"\('(.*)', .*\)$", r"\1", first)  # an error of two parts, printed as a tuple
    return f"{first} {rest[-1]}" if rest else first


_STATED = {
    "architecture": "name of the network, where the file leaves two open",
    "mean": "normalisation, three numbers with commas between, or a preset: imagenet, cifar10, "
    "cifar10-pytorchcv; by default the file's",
    "std": "the same; a preset given for one of both stands for both",
    "entry": "which entry of a PyTorch checkpoint holds the weights",
    "prefix": "what stands before the names of the network's weights, such as backbone",
}


def define_stated(values: flags.FlagValues) -> tuple[str, ...]:
    """Defines the flags of what a user states of a teacher, and returns their names."""
    for name, help_text in _STATED.items():
        flags.DEFINE_string(name, None, help_text, flag_values=values)
    flags.DEFINE_integer("image_size", None, "side of the images in pixels", flag_values=values)
    flags.DEFINE_integer(
        "pixel_units",
        1,
        "what a white pixel is in the units of --mean and --std: 1, or 255, which divides both by "
        "255",
        flag_values=values,
    )
    return (*_STATED, "image_size", "pixel_units")


def stated_by(values: flags.FlagValues) -> Any:
    """Returns what the flags of `define_stated` state, as a `Stated`."""
    from adadfq_jax.teachers.normalisation import parse_normalisation
    from adadfq_jax.teachers.stated import Stated

    mean, std = parse_normalisation(values.mean, values.std)
    given = values.architecture, mean, std, values.image_size, values.entry, values.prefix
    return Stated(*given, values.pixel_units)


def define_cache(values: flags.FlagValues) -> None:
    """Defines --cache, the folder of compiled programs."""
    flags.DEFINE_string(
        "cache",
        str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "adadfq_jax").expanduser()),
        "folder of compiled programs, empty for none",
        flag_values=values,
    )
