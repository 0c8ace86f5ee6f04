"""What is made of a verb's flags in `table.py`: their definition, their help, and what is wrong."""

import dataclasses
import itertools
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from adadfq_jax.config import presets
from adadfq_jax.config.kinds import INTEGER, SWITCH, TEXT, Kind
from adadfq_jax.errors import AdaDFQError, ConfigError, near, nearest


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of a verb.

    Attributes:
      name: of the flag, and of its value in what `parse` returns.
      written: how its value is written, such as FILE; nothing of a switch.
      help: what it is.
      kind: the type of its value.
      default: its value where it is not given.
      least: the least number that it can be.
      required: whether it must be given.
    """

    name: str
    written: str
    help: str
    kind: Kind = TEXT
    default: Any = None
    least: int | None = None
    required: bool = False

    @property
    def right(self) -> str:
        """What its values must be, for a person."""
        return self.kind.words + (f", at least {self.least}" if self.least is not None else "")

    @property
    def usage(self) -> str:
        """How it is given, such as --workdir=DIR."""
        if self.kind is SWITCH:
            return f"--[no]{self.name}" if self.default else f"--{self.name}"
        return f"--{self.name}={self.written}"


NAMES = Kind(list, "names with commas between", lambda value: isinstance(value, list))

# The value of this one is a configuration; its fields are flags, too: --config.FIELD=VALUE.
CONFIG = Flag(
    "config",
    "NAME",
    "a configuration with bit-widths: by name, as digits_resnet20:w4a4, or a file, as "
    "mine.py:w4a4; --config.FIELD=VALUE sets a field",
    required=True,
)
# Of a verb that can do without.
OPTIONAL_CONFIG = dataclasses.replace(CONFIG, required=False)
_FIELD = f"{CONFIG.name}."
_PRESETS = Path(presets.__file__).parent
_NOTHING = (None, "", [])


def asks_for_help(argv: Sequence[str]) -> bool:
    """Tells whether a command line asks for help."""
    return any(word in ("-h", "--help", "-help") for word in argv)


def describe(verb: str, what: str, table: Sequence[Flag], example: str) -> str:
    """Returns the help of a verb.

    Args:
      verb: its name.
      what: what it does.
      table: its flags; those that must be given are listed first.
      example: the words that follow its name in a command.

    Returns:
      What it does, an example, its flags, and the names and fields of configurations.
    """
    width = max(len(flag.usage) for flag in table) + 2
    lines = [f"usage: adadfq {verb} --flag=value …: {what}", "", f"  adadfq {verb} {example}", ""]
    for flag in sorted(table, key=lambda flag: not flag.required):
        note = " (needed)" if flag.required else ""
        if flag.kind is not SWITCH and flag.default not in _NOTHING:
            default = ",".join(flag.default) if flag.kind is NAMES else flag.default
            note = f" (default {default})"
        lines.append(f"  {flag.usage:<{width}}{flag.help}{note}")
    if _configured(table):
        from adadfq_jax.config.reference import fields_help

        lines += [
            "",
            f"Configurations: {', '.join(preset_names())}.",
            "",
            "The fields that --config.FIELD=VALUE sets, with the defaults of `base` (see also "
            "configs/README.md):",
            "",
            fields_help(),
        ]
    return "\n".join(lines)


def parse(verb: str, table: Sequence[Flag], argv: Sequence[str]) -> types.SimpleNamespace:
    """Reads a verb's command line.

    Args:
      verb: its name.
      table: its flags.
      argv: what follows the verb.

    Returns:
      The value of each flag by its name, and `argv` itself.

    Raises:
      ConfigError: a flag is unknown or missing, or its value cannot be used.
    """
    argv = [_with_underscores(word) for word in argv]
    words = argv
    if _configured(table):
        _check_config(_given(argv))
        words = _with_file(argv)
    values = _define(verb, table, words)
    try:
        left_over = values([verb, *words])[1:]
    except AdaDFQError:
        raise
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_unknown_flag(error.flagname, table)) from error
    except flags.Error as error:
        raise ConfigError(_in_our_words(error, table, argv)) from error
    except Exception as error:  # the configuration file is a program, which may fail in any way
        raise ConfigError(
            f"the configuration file fails with {type(error).__name__}: {one_line(error)}"
        ) from error
    if left_over:
        raise ConfigError(f"{left_over[0]!r} is not a flag; flags are written --name=value.")
    found = {flag.name: values[flag.name].value for flag in table}
    for flag in table:
        if flag.required and found[flag.name] in _NOTHING:
            raise ConfigError(f"{flag.usage} is missing: {flag.help}.")
    if found.get(CONFIG.name) is not None and not hasattr(found[CONFIG.name], "to_dict"):
        raise ConfigError(
            f"the configuration file returned {found[CONFIG.name]!r}, not a ConfigDict."
        )
    return types.SimpleNamespace(**found, argv=argv)


def _define(verb: str, table: Sequence[Flag], argv: Sequence[str]) -> flags.FlagValues:
    """Defines a verb's flags; those of a configuration's fields are the ones in `argv`."""
    values = flags.FlagValues()
    for flag in table:
        common = {"name": flag.name, "default": flag.default, "flag_values": values}
        if flag.name == CONFIG.name:
            from ml_collections import config_flags

            config_flags.DEFINE_config_file(**common, sys_argv=[verb, *argv])
        elif flag.kind is INTEGER:
            flags.DEFINE_integer(**common, help=flag.help, lower_bound=flag.least)
        elif flag.kind is SWITCH:
            flags.DEFINE_bool(**common, help=flag.help)
        elif flag.kind is NAMES:
            flags.DEFINE_list(**common, help=flag.help)
        else:
            flags.DEFINE_string(**common, help=flag.help)
    return values


def _configured(table: Sequence[Flag]) -> bool:
    return any(flag.name == CONFIG.name for flag in table)


def _given(argv: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the names of the flags on a command line with their values.

    A value is what follows "=", or the next word.
    """
    found = []
    for word, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            found.append((name, value if equals else following))
    return found


def _with_underscores(word: str) -> str:
    """Writes a flag's name as the table does, since --dry-run is as usual as --dry_run."""
    name, equals, value = word.partition("=")
    if re.fullmatch(r"--?[a-z]+(-[a-z]+)+", name):
        dashes = "--" if name.startswith("--") else "-"
        name = dashes + name[len(dashes) :].replace("-", "_")
    return f"{name}{equals}{value}"


def _unknown_flag(name: str, table: Sequence[Flag]) -> str:
    """Returns what is said of a flag that a verb does not have."""
    if CONFIG in table:
        from adadfq_jax.config.fields import FIELDS

        fields = [field for field in FIELDS if name in (field, field.rpartition(".")[2])]
        if fields:
            meant = " or ".join(f"--{_FIELD}{field}" for field in fields)
            return f"unknown flag {name!r}: did you mean {meant}?"
    return f"unknown flag {name!r}: {nearest(name, [flag.name for flag in table])}"


def preset_names() -> list[str]:
    """Returns the names of the configurations in the package."""
    return sorted(path.stem for path in _PRESETS.glob("[a-z]*.py"))


def _file_of(text: str) -> Path:
    """Returns the path of the file that a value of --config names, which may be missing."""
    name = text.partition(":")[0]
    is_name = name and "/" not in name and not name.endswith(".py") and not Path(name).is_file()
    return _PRESETS / f"{name}.py" if is_name else Path(name)


def _with_file(argv: Sequence[str]) -> list[str]:
    """Puts the file of a configuration in the place of its name."""
    flag, words = f"--{CONFIG.name}", list(argv)
    for index, word in enumerate(words):
        dashes, equals, value = word.partition("=")
        if dashes.lstrip("-") != CONFIG.name or not word.startswith("-"):
            continue
        if not equals and index + 1 < len(words):
            value = words[index + 1]
            words[index + 1] = f"{_file_of(value)}{''.join(value.partition(':')[1:])}"
        elif equals:
            words[index] = f"{flag}={_file_of(value)}{''.join(value.partition(':')[1:])}"
    return words


def _check_config(given: Sequence[tuple[str, str]]) -> None:
    """Checks the file of --config and the fields of --config.FIELD, before the file is executed."""
    from adadfq_jax.config.fields import find_field

    files = [value for name, value in given if name == CONFIG.name]
    if len(files) > 1:
        raise ConfigError(f"--config is given {len(files)} times: {', '.join(files)}; give one.")
    for file in files:
        path = _file_of(file)
        if path.is_file():
            continue
        if path.parent == _PRESETS:
            raise ConfigError(
                f"there is no configuration {path.stem!r}: known: {', '.join(preset_names())}; a "
                "file is written FILE.py."
            )
        others = {other.stem: str(other) for other in path.parent.glob("*.py")}
        close = [others[name] for name in near(path.stem, others)]
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "nor one of a similar name there."
        )
        raise ConfigError(f"there is no configuration file {str(path)!r}; {hint}")
    for name, _ in given:
        name = name.removeprefix("no")  # of a switch: --noconfig.remat
        if name.startswith(_FIELD):
            find_field(name.removeprefix(_FIELD))


def _in_our_words(error: flags.Error, table: Sequence[Flag], argv: Sequence[str]) -> str:
    """Returns what is wrong with a flag's value: absl's words are about its parsers."""
    message = str(error).strip()
    named = re.match(r"(?:flag|Missing value for flag) --([\w.]+)", message)
    known = {flag.name: flag for flag in table if flag.name != CONFIG.name}
    if named and named[1].startswith(_FIELD):
        from adadfq_jax.config.fields import find_field

        known[named[1]] = find_field(named[1].removeprefix(_FIELD))
    if named and named[1] in known:
        right = known[named[1]].right
        if message.startswith("Missing"):
            return f"--{named[1]} has no value, which must be {right}."
        return f"--{named[1]}={dict(_given(argv))[named[1]]}: it must be {right}."
    # ml_collections puts the traceback of a configuration file into its message.
    first, *rest = message.splitlines()
    first = re.sub(r"\('(.*)', .*\)$", r"\1", first)  # an error of two parts, printed as a tuple
    return f"{first} {rest[-1]}" if rest else first


def one_line(error: Exception) -> str:
    """Returns what an error says in one line."""
    return " ".join(str(error).split())
