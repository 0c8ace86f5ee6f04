"""What an exported file says of itself: JSON with the number of its format and a checksum."""

import json
from collections.abc import Callable
from typing import Any

from adadfq_jax.errors import ExportError


def read_description(
    name: str, text: str | None, newest: int, checksum_of: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Reads and checks the description in a file's metadata.

    Args:
      name: the file's, for messages.
      text: the JSON object, or None where the file has none.
      newest: the newest format that this version reads.
      checksum_of: computes the checksum of the file, from the description without it.

    Returns:
      The description without its checksum.

    Raises:
      ExportError: the file is damaged, of another kind, or of a newer format.
    """
    if text is None:
        raise ExportError(f"{name} is not a file of `adadfq export`; a teacher's is for --teacher.")
    try:
        described = json.loads(text)
        newer = described["format"] > newest
        checksum = described.pop("checksum")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ExportError(f"{name} is damaged: its metadata cannot be read.") from error
    if newer:
        refuse_newer(name, described["format"], newest)
    if checksum != checksum_of(described):
        raise ExportError(f"{name} is damaged: its checksum does not hold.")
    return described


def refuse_newer(name: str, found: int, newest: int) -> None:
    """Raises ExportError for a file of a format that only a later version reads."""
    raise ExportError(
        f"{name} has format {found}, but this version reads up to {newest}: update adadfq_jax."
    )
