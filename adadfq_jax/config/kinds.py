"""Types of values, of a configuration's fields and of flags: what belongs to each, and its name."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type of values.

    Attributes:
      type: the Python type, as a configuration and a flag keep it.
      words: what a value must be, for a person, such as "an integer".
      holds: tells whether a value is one.
    """

    type: type
    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _all(value: Any, holds: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and all(map(holds, value))


# A bool is an int to Python, and is none here.
INTEGER = Kind(int, "an integer", lambda value: type(value) is int)
NUMBER = Kind(float, "a finite number", _is_number)
SWITCH = Kind(bool, "True or False", lambda value: type(value) is bool)
TEXT = Kind(str, "text", lambda value: type(value) is str)
NUMBERS = Kind(
    tuple, "a tuple of finite numbers such as (1,2)", lambda value: _all(value, _is_number)
)
TEXTS = Kind(
    tuple, "a tuple of texts such as ('stem_*=w8a8',)", lambda value: _all(value, TEXT.holds)
)
