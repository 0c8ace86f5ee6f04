"""The file of bit-widths that `adadfq allocate` writes and `quant.overrides` names, `@bits.json`.

It is JSON: `format` 1, the `network` and the SHA-256 of the `teacher` that it was made for, whether
`sums` are quantized, the `overrides`, and, for people, how they were found.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adadfq_jax.errors import ConfigError
from adadfq_jax.models.network import Teacher
from adadfq_jax.quantization.bits import named_file, parse_override
from adadfq_jax.storage.files import locate, write_whole

FORMAT = 1
_SHOWN = 12  # digits of a digest in a message
_KINDS = {"format": int, "network": str, "teacher": str, "sums": bool, "overrides": list}


def write_bits(
    path: str | Path,
    teacher: Teacher,
    overrides: Sequence[str],
    *,
    sums: bool,
    about: Mapping[str, Any],
) -> None:
    """Writes a file of bit-widths.

    Args:
      path: the file, on a disk or in Cloud Storage.
      teacher: the network that they are for.
      overrides: entries of `quant.overrides`.
      sums: whether they are for a student of `quant.sums`.
      about: how they were found, as JSON can hold it.
    """
    written = {
        "format": FORMAT,
        "network": teacher.architecture,
        "teacher": teacher.digest,
        "sums": sums,
        "overrides": list(overrides),
        **about,
    }
    write_whole(locate(path), (json.dumps(written, indent=1) + "\n").encode())


def named_bits(overrides: Sequence[str]) -> bytes | None:
    """Returns the content of the file that overrides name; where they name several, the last one.

    Args:
      overrides: entries of `quant.overrides`.

    Raises:
      ConfigError: it cannot be read.
    """
    names = [name for text in overrides if (name := named_file(text))]
    return _content(locate(names[-1])) if names else None


def is_bits_file(path: Path) -> bool:
    """Tells whether a file is one of bit-widths, which may be replaced by another."""
    try:
        _read(path)
    except ConfigError:
        return False
    return True


def with_files(overrides: Sequence[str], teacher: Teacher, sums: bool) -> tuple[str, ...]:
    """Puts the entries of files in the place of their names.

    Args:
      overrides: entries of `quant.overrides`; `@bits.json` names a file.
      teacher: the network.
      sums: whether its student quantizes sums.

    Raises:
      ConfigError: a file is missing, is no such file, or is of another network.
    """
    found: list[str] = []
    for text in overrides:
        name = named_file(text)
        found += [text] if name is None else _entries(name, teacher, sums)
    return tuple(found)


def _entries(name: str, teacher: Teacher, sums: bool) -> list[str]:
    written = _read(locate(name))
    if written["teacher"] != teacher.digest:
        raise ConfigError(
            f"{name!r} has the bit-widths of another network, {written['network']} of digest "
            f"{written['teacher'][:_SHOWN]}, and not of this {teacher.architecture} of digest "
            f"{teacher.digest[:_SHOWN]}: make its own with `adadfq allocate`."
        )
    if written["sums"] != sums:
        raise ConfigError(
            f"{name!r} was made for quant.sums={written['sums']}, and this is quant.sums={sums}: "
            f"set quant.sums={written['sums']}, or make another file with `adadfq allocate`."
        )
    return written["overrides"]


def _read(path: Path) -> dict[str, Any]:
    """Reads a file of bit-widths.

    Raises:
      ConfigError: there is none, or it is another file.
    """
    content = _content(path)
    try:
        written = json.loads(content)
    except (ValueError, RecursionError):
        written = None
    if not isinstance(written, dict) or not _KINDS.keys() <= written.keys():
        raise ConfigError(f"{str(path)!r} is no file of `adadfq allocate`.")
    if written["format"] != FORMAT:
        raise ConfigError(
            f"{str(path)!r} is of format {written['format']!r}, and this version of adadfq reads "
            f"{FORMAT}: make it again with `adadfq allocate`."
        )
    texts = written["overrides"]
    if not all(isinstance(written[name], kind) for name, kind in _KINDS.items()) or not all(
        isinstance(text, str) for text in texts
    ):
        raise ConfigError(f"{str(path)!r} is damaged: make it again with `adadfq allocate`.")
    for text in texts:
        parse_override(text)
    return written


def _content(path: Path) -> bytes:
    """Reads a file.

    Raises:
      ConfigError: there is none, or it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no file of bit-widths {str(path)!r}; `adadfq allocate` writes one, and a "
            "run that was given one keeps it in its workdir as allocation.json."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"the file of bit-widths {str(path)!r} cannot be read: {error.strerror}."
        ) from error
