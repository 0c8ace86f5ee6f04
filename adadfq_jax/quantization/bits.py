"""Bit-widths of the layers: `w4a4` for all of them, and exceptions by a layer's name."""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import jax.numpy as jnp

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.quantization.codes import MAX_BITS

SYMMETRIC = "symmetric"  # beside "weight" in the collection `bits`

_SHOWN = 4  # overrides in words
_FILE = re.compile(r"@(?P<path>.+\.json)")
_OVERRIDE = re.compile(r"(?P<pattern>[^=]+)=(?:w(?P<weight>\d{1,9}))?(?:a(?P<activation>\d{1,9}))?")


def parse_bits(text: str) -> tuple[int, int]:
    """Reads `w4a4`, or `W4A4`, as (weight bits, activation bits).

    Raises:
      ConfigError: the text has another form, or a bit-width is outside 1 to 8.
    """
    match = re.fullmatch(r"w(\d+)a(\d+)", text.lower())
    if match is None:
        raise ConfigError(f"bit-widths are written like w4a4, not {text!r}.")
    weight, activation = map(int, match.groups())
    check_bits("weight bits", weight)
    check_bits("activation bits", activation)
    return weight, activation


def check_bits(what: str, bits: int) -> None:
    """Checks a bit-width.

    Args:
      what: name of the bit-width in the error, such as "weight bits".
      bits: the bit-width.

    Raises:
      ConfigError: the bit-width is outside 1 to 8.
    """
    if not 1 <= bits <= MAX_BITS:
        raise ConfigError(f"{what} must be between 1 and {MAX_BITS}, not {bits}.")


def parse_override(text: str) -> tuple[str, dict[str, int]]:
    """Reads `pattern=w8a8`, `pattern=w8` or `pattern=a8`.

    Returns:
      (pattern, {"weight": bits, "activation": bits}), with only what the text names.

    Raises:
      ConfigError: the text has another form, or a bit-width is outside 1 to 8.
    """
    match = _OVERRIDE.fullmatch(text)
    if match is None or not (match["weight"] or match["activation"]):
        raise ConfigError(
            "quant.overrides takes entries like 'stem_*=w8a8', 'classifier=w8', or '@FILE.json' "
            f"for a file of `adadfq allocate`, not {text!r}."
        )
    bits = {kind: int(match[kind]) for kind in ("weight", "activation") if match[kind]}
    for kind, value in bits.items():
        check_bits(f"{kind} bits in quant.overrides entry {text!r}", value)
    return match["pattern"], bits


def named_file(text: str) -> str | None:
    """Returns the path in an entry that names a file, `@bits.json`; None of another entry."""
    match = _FILE.fullmatch(text)
    return match["path"] if match else None


def overrides_in_words(overrides: Sequence[str]) -> str:
    """Returns overrides with commas between; of many, the first ones and how many follow."""
    shown = list(overrides)
    if len(shown) > _SHOWN:
        shown[_SHOWN - 1 :] = [f"and {len(shown) - _SHOWN + 1} other layers"]
    return ", ".join(shown)


def assign_bits(
    bits: Mapping[str, Any], weight_bits: int, activation_bits: int, overrides: Sequence[str]
) -> dict[str, Any]:
    """Fills a network's `bits` collection.

    Args:
      bits: the collection as `initial_variables` returns it; only its structure is read.
      weight_bits: bit-width of every convolution and dense layer.
      activation_bits: bit-width of every quantized ReLU.
      overrides: entries such as `pattern=w8a8`. A pattern (`*`, `?`, `[…]`) is matched against
        whole layer names such as `stage1_block1/conv1`; where two match, the later entry holds.

    Returns:
      The same structure with int32 bit-widths.

    Raises:
      ConfigError: a malformed entry, or one that matches no layer.
    """
    leaves = flax.traverse_util.flatten_dict(bits)
    assigned = {path: weight_bits if path[-1] == "weight" else activation_bits for path in leaves}
    names = {"/".join(path[:-1]): path for path in leaves}
    for text in overrides:
        pattern, changed = parse_override(text)
        matching = [
            path
            for name, path in names.items()
            if fnmatch.fnmatchcase(name, pattern) and path[-1] in changed
        ]
        if not matching:
            raise ConfigError(
                f"quant.overrides entry {text!r} matches no layer; {nearest(pattern, names)}"
            )
        for path in matching:
            assigned[path] = changed[path[-1]]
    return flax.traverse_util.unflatten_dict(
        {path: jnp.int32(value) for path, value in assigned.items()}
    )


def with_symmetric_weights(bits: Mapping[str, Any]) -> dict[str, Any]:
    """Marks every kernel in a network's `bits` collection as one whose zero point is -2^(k-1).

    Args:
      bits: the collection as `assign_bits` returns it.

    Raises:
      ConfigError: a kernel has 1 bit, of which a signed code has no positive value.
    """
    leaves = flax.traverse_util.flatten_dict(bits)
    for path, value in leaves.items():
        if path[-1] == "weight" and value < 2:
            raise ConfigError(
                "quant.symmetric_weights needs weights of 2 bits or more, and "
                f"{'/'.join(path[:-1])} has 1: set more, or quant.symmetric_weights=False."
            )
    marks = {(*path[:-1], SYMMETRIC): jnp.bool_(True) for path in leaves if path[-1] == "weight"}
    return flax.traverse_util.unflatten_dict(leaves | marks)
