"""What an exported file says of itself: JSON with the number of its format and a checksum."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors

from adadfq_jax.config.fields import FORMAT_BY_SUFFIX
from adadfq_jax.errors import ExportError

# Where the description stands: under these keys of the metadata, or in this entry of a zip file.
INTEGERS_KEY, ONNX_KEY, STABLEHLO_ENTRY = "adadfq_integers", "adadfq_onnx", "adadfq.json"


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ExportError(f"{name} is damaged: its metadata cannot be read.") from error
    if newer:
        refuse_newer(name, described["format"], newest)
    if checksum != checksum_of(described):
        raise ExportError(f"{name} is damaged: its checksum does not hold.")
    return described


def read_about(path: Path) -> dict[str, Any]:
    """Returns what an exported file says of who made it, without running or checking the file.

    Only a PyTorch file needs a package to be opened.

    Args:
      path: a file of `adadfq export`, of any version, or any other one.

    Returns:
      `about` of its description: the version, the digests of teacher and student, the step, the
      run's result; empty where the file says nothing of that kind.
    """
    try:
        about = _described(path)["about"]
    except Exception:  # a file of another kind, or a damaged one, fails in many ways
        return {}
    return about if isinstance(about, dict) else {}


def _described(path: Path) -> dict[str, Any]:
    match FORMAT_BY_SUFFIX.get(path.suffix):
        case "integers":
            with safetensors.safe_open(path, "numpy") as file:
                return json.loads(file.metadata()[INTEGERS_KEY])
        case "onnx":
            # Protocol buffers hold a string as it is, and metadata come after the graph.
            after = path.read_bytes().rpartition(ONNX_KEY.encode())[2].decode(errors="replace")
            return json.JSONDecoder().raw_decode(after[after.index("{") :])[0]
        case "stablehlo":
            with zipfile.ZipFile(path) as file:
                return json.loads(file.read(STABLEHLO_ENTRY))
        case "pytorch":
            import torch

            return torch.load(path, map_location="cpu", weights_only=True)
        case format:
            raise AssertionError(format)


def refuse_newer(name: str, found: int, newest: int) -> None:
    """Raises ExportError for a file of a format that only a later version reads."""
    raise ExportError(
        f"{name} has format {found}, but this version reads up to {newest}: update adadfq_jax."
    )
