"""A grid: fields with several values each, and the games (runs) of all their combinations."""

import ast
import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import find_field
from adadfq_jax.errors import ConfigError
from adadfq_jax.quantization.bits import parse_bits

BITS = "bits"  # both bit-widths in one word
SEED = "seed"
_SHORT = {"game.method": "", BITS: "", SEED: SEED}  # prefixes of the values in a game's name
# The order of fields in a game's name; all others are 1.
_ORDER = {"game.method": 0, BITS: 2, "quant.weight_bits": 2, "quant.activation_bits": 3, SEED: 4}
_TIED = ("quant.weight_bits", "quant.activation_bits")
_WRITTEN = "write --grid='FIELD=VALUE,VALUE;FIELD=LOWEST..HIGHEST'"


@dataclasses.dataclass(frozen=True)
class Point:
    """One game of a grid.

    Attributes:
      name: name of the game's folder; it does not depend on the order of the grid's fields.
      values: values by key of the grid.
      config: the game's whole configuration.
    """

    name: str
    values: Mapping[str, Any]
    config: ml_collections.ConfigDict


def parse_grid(text: str) -> dict[str, tuple[Any, ...]]:
    """Reads a grid written like `quant.weight_bits=3,4,5;seed=0..4;game.method=gdfq,adadfq`.

    `bits=w3a3,w4a4` sets both bit-widths. `0..4` stands for the integers 0 to 4.

    Returns:
      The values by key, each of its field's type.

    Raises:
      ConfigError: a field is unknown or named twice, or a value is malformed, repeated or missing.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for entry in text.split(";"):
        key, equals, values = (part.strip() for part in entry.partition("="))
        if not key or not equals:
            raise ConfigError(f"the grid has an entry {entry.strip()!r}; {_WRITTEN}.")
        if key in grid:
            raise ConfigError(f"the grid names {key} twice; give it all its values at once.")
        if key != BITS:
            find_field(key)
        grid[key] = tuple(value for word in _split(values) for value in _values(key, word.strip()))
    check_grid(grid)
    return grid


def check_grid(grid: Mapping[str, Sequence[Any]]) -> None:
    """Checks the keys and values of a grid.

    Raises:
      ConfigError: the grid is empty, or a key is unknown, has no values, or has a value twice.
    """
    if not grid:
        raise ConfigError(f"the grid is empty; {_WRITTEN}.")
    for key, values in grid.items():
        if key != BITS:
            find_field(key)
        if not isinstance(values, list | tuple):
            raise ConfigError(f"the grid gives {key} {values!r}, not a list of values.")
        if not values:
            raise ConfigError(f"the grid gives {key} no value.")
        if key == BITS and not all(isinstance(value, str) for value in values):
            raise ConfigError(f"the grid's {BITS} are written like 'w4a4', not {values!r}.")
        for index, value in enumerate(values):
            if value in values[:index]:
                raise ConfigError(f"the grid gives {key} the value {value!r} twice.")
    if BITS in grid and not grid.keys().isdisjoint(_TIED):
        raise ConfigError(
            f"the grid has {BITS}, which sets {' and '.join(_TIED)}, and one of these as well."
        )


def _split(text: str) -> list[str]:
    """Splits at commas outside brackets."""
    words, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and not depth:
            words.append("")
        else:
            words[-1] += character
    return words


def _values(key: str, word: str) -> list[Any]:
    """Reads one word of a grid: a value of the field's type, or a range of integers."""
    if key == BITS:
        parse_bits(word)
        return [word.lower()]
    known = find_field(key).kind
    kind = known.type
    try:
        if kind is int and ".." in word:
            lowest, highest = map(int, word.split(".."))
            if lowest <= highest:
                return list(range(lowest, highest + 1))
        elif kind is bool:
            if word in ("True", "False"):
                return [word == "True"]
        elif kind is tuple:
            value = ast.literal_eval(word)
            if isinstance(value, tuple):
                return [value]
        elif word:
            value = kind(word)
            if kind is not float or math.isfinite(value):
                return [value]
    except (ValueError, SyntaxError):
        pass
    right = known.words + (", or a range such as 0..4" if kind is int else "")
    raise ConfigError(f"the grid gives {key} the value {word!r}, which is not {right}.")


def plan(config: ml_collections.ConfigDict, grid: str | Mapping[str, Sequence[Any]]) -> list[Point]:
    """Returns the games of a grid, ordered so that games with the same compiled step are adjacent.

    Args:
      config: from `default_config` or a file in `configs/`, for the fields that the grid does not
        name.
      grid: text for `parse_grid`, or a mapping as it returns.

    Raises:
      ConfigError: the grid is malformed, or one of its games has an invalid configuration.
    """
    grid = parse_grid(grid) if isinstance(grid, str) else dict(grid)
    check_grid(grid)
    # Bit-widths and seed, which vary fastest, are arguments of a compiled step; other fields may
    # need another step.
    keys = sorted(grid, key=_rank)
    points = []
    for values in itertools.product(*(grid[key] for key in keys)):
        point = dict(zip(keys, values, strict=True))
        game = config.copy_and_resolve_references()
        fields = dict(point)
        if BITS in fields:
            fields |= zip(_TIED, parse_bits(fields.pop(BITS)), strict=True)
        try:
            game.update_from_flattened_dict(fields)
        except TypeError as error:
            raise ConfigError(f"the grid has a value of the wrong type: {error}.") from error
        validate(game)
        name = "_".join(_part(key, point[key]) for key in sorted(point, key=_rank))
        points.append(Point(name, point, game))
    return points


def without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a game's values by key, except the seed."""
    return {key: value for key, value in values.items() if key != SEED}


def varied(games: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the fields that differ between games, except the seed, each with all its values."""
    found = {}
    for key in without_seed(games[0]):
        values: list[Any] = []
        for game in games:
            if game[key] not in values:
                values.append(game[key])
        if len(values) > 1:
            found[key] = values
    return found


def spans_surface(fields: Mapping[str, Sequence[Any]]) -> bool:
    """Tells whether the fields that `varied` returned are two, both with numbers as values."""
    values = [value for field in fields.values() for value in field]
    return len(fields) == 2 and all(isinstance(value, int | float) for value in values)


def _rank(key: str) -> tuple[int, str]:
    """Returns a sort key that puts the method first, bits and seed last."""
    return _ORDER.get(key, 1), key


def _part(key: str, value: Any) -> str:
    text = str(value)
    safe = re.sub(r"[^\w.+-]+", "-", text)
    if safe != text:  # so that two values never give the same name
        safe += "-" + hashlib.sha256(text.encode()).hexdigest()[:6]
    return f"{_SHORT.get(key, key + '=')}{safe}"
