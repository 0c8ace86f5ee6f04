"""What a field must be besides its type: bounds, choices, and texts of a certain form."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.quantization.bits import named_file, parse_override

DATA_SOURCES = ("none", "npz", "folder", "tfds:NAME")


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a value must be besides its type.

    Attributes:
      words: it, for the reference of fields, such as "at least 1".
      check: raises ConfigError, given a field's name and its value, where the value is not that.
    """

    words: str
    check: Callable[[str, Any], None]


def _bound(words: str, holds: Callable[[Any], bool]) -> Bound:
    def check(name: str, value: Any) -> None:
        require(holds(value), name, value, words)

    return Bound(words, check)


def require(holds: bool, name: str, value: Any, right: str) -> None:
    """Raises ConfigError that says what would be right, unless something holds."""
    if not holds:
        raise ConfigError(f"{name} must be {right}, not {value!r}.")


ANYTHING = Bound("", lambda name, value: None)
POSITIVE = _bound("positive", lambda value: value > 0)
ALL_POSITIVE = _bound("positive", lambda values: all(value > 0 for value in values))
BELOW_ONE = _bound("at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = _bound("at least 0 and below 2^32", lambda value: 0 <= value < 2**32)
EPOCHS = _bound(
    "distinct positive epochs",
    lambda values: all(value > 0 for value in values) and len(set(values)) == len(values),
)


def at_least(lowest: int) -> Bound:
    """Returns the bound of numbers that are not below another."""
    return _bound(f"at least {lowest}", lambda value: value >= lowest)


def between(lowest: int, highest: int) -> Bound:
    """Returns the bound of numbers from one to another, both included."""
    return _bound(f"between {lowest} and {highest}", lambda value: lowest <= value <= highest)


def one_of(known: Iterable[str]) -> Bound:
    """Returns the bound of a choice between names; its error tells the nearest ones."""
    known = tuple(known)

    def check(name: str, value: str) -> None:
        if value not in known:
            raise ConfigError(f"unknown {name} {value!r}: {nearest(value, known)}")

    return Bound(f"one of {', '.join(known)}", check)


def some_of(known: Iterable[str]) -> Bound:
    """Returns the bound of texts of names, with commas between, or of none."""
    known = tuple(known)

    def check(name: str, value: str) -> None:
        for word in split(value):
            if word not in known:
                raise ConfigError(f"{name} names {word!r}: {nearest(word, known)}")

    return Bound(f"any of {', '.join(known)}, with commas between", check)


def split(text: str) -> list[str]:
    """Returns the names in a text that has commas between them."""
    return [name.strip() for name in text.split(",") if name.strip()]


def only(right: str, because: str) -> Bound:
    """Returns the bound of a field that can have one value, for a reason."""

    def check(name: str, value: str) -> None:
        if value != right:
            raise ConfigError(f"{name} must be {right!r}, not {value!r}: {because}.")

    return Bound(f"only {right}", check)


def _check_overrides(_name: str, value: Iterable[str]) -> None:
    for text in value:
        if named_file(text) is None:
            parse_override(text)


OVERRIDES = Bound(
    "each the name of layers and w8a8, w8 or a8, or @FILE.json of `adadfq allocate`",
    _check_overrides,
)


def check_source(name: str, value: str) -> None:
    """Raises ConfigError where an evaluation set's source is unknown; `name` is the setting's."""
    if value not in DATA_SOURCES[:-1] and not re.fullmatch("tfds:.+", value):
        raise ConfigError(f"unknown {name} {value!r}: {nearest(value, DATA_SOURCES)}")


SOURCE = Bound(f"one of {', '.join(DATA_SOURCES)}", check_source)
