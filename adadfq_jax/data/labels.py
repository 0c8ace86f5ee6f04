"""Reads which class folder is which class, where the names' order does not tell."""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adadfq_jax.data.dataset import shortened
from adadfq_jax.errors import DataError, nearest

_FORMS = (
    'a JSON object {"FOLDER": CLASS, …}, a JSON array ["FOLDER OF CLASS 0", …], or lines '
    "`FOLDER CLASS`, or `FOLDER` in the order of the classes"
)


def read_labels(path: Path, folders: Sequence[str]) -> tuple[dict[str, int], tuple | None]:
    """Reads the class of every class folder from a file.

    Args:
      path: a file, in UTF-8, of one of these forms: a JSON object of class numbers from 0 by folder
        (torchvision's `class_to_idx`); a JSON array of all classes' folders in the order of the
        classes; lines `FOLDER CLASS`; lines `FOLDER`, in the order of the classes. It may name
        folders that do not exist.
      folders: the class folders that exist.

    Returns:
      (class number by folder; names of all classes in their order, None if the file gives numbers).

    Raises:
      DataError: the file cannot be read, is of another form, or lacks a folder.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise DataError(f"the labels {str(path)!r} cannot be read: {reason}.") from error
    given, names = _parse(text, str(path))
    if names is not None:
        given = list(zip(names, range(len(names)), strict=True))
    by_name = dict(given)
    counts = collections.Counter(name for name, _ in given)
    repeated = [name for name, count in counts.items() if count > 1]
    if repeated:
        raise DataError(f"the labels {str(path)!r} name {shortened(repeated)} more than once.")
    missing = [name for name in folders if name not in by_name]
    if missing:
        raise DataError(
            f"the labels {str(path)!r} say nothing of {len(missing)} class folders "
            f"({shortened(missing)}): {nearest(missing[0], by_name)}"
        )
    return by_name, None if names is None else tuple(names)


def _parse(text: str, path: str) -> tuple[list[tuple[str, int]], list[str] | None]:
    """Returns (pairs of folder and class, None), or ([], folders in the order of the classes)."""
    try:
        content = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError:
        return _parse_lines(text, path)
    if isinstance(content, _Pairs) and all(_is_class(number) for _, number in content):
        return list(content), None
    if isinstance(content, list) and content and all(isinstance(x, str) for x in content):
        return [], content
    raise DataError(f"the labels {path!r} must be {_FORMS}.")


class _Pairs(list):
    """The pairs of a JSON object; a dict would hide a repeated name."""


def _parse_lines(text: str, path: str) -> tuple[list[tuple[str, int]], list[str] | None]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    split = [line.rsplit(maxsplit=1) for line in lines]
    if lines and all(len(parts) == 2 and parts[1].isdecimal() for parts in split):
        return [(name, int(number)) for name, number in split], None
    if lines and all(len(parts) == 1 for parts in split):
        return [], lines
    raise DataError(f"the labels {path!r} must be {_FORMS}.")


def _is_class(number: Any) -> bool:
    return type(number) is int and number >= 0
