"""What kind of file a checkpoint is, told from its first bytes and not from its suffix."""

import re
import zipfile
from pathlib import Path

from adadfq_jax.errors import TeacherError

SAFETENSORS, TORCH = "safetensors", "torch"

_FIRST = 512
_TAR_MARK = slice(257, 262)
# Words of a line or more; pickle's first protocol is text, too, but of a letter or two a line.
_TEXT = re.compile(rb"[\t\r -~]{3,}(?:\n[\t\n\r -~]*)?")
_DOWNLOAD = "download the file itself"
# By what a file begins with: what it is, and what to do.
_OTHERS = (
    (rb"version https://git-lfs", "a Git LFS pointer of a few lines, not the weights: fetch them "
     "with `git lfs pull`, or download the file itself"),
    (rb"\s*(?:\xef\xbb\xbf)?\s*<", f"a web page (HTML or XML), not a checkpoint: {_DOWNLOAD}, "
     "often behind a link called raw or download"),
    (rb"\x1f\x8b", "compressed with gzip: unpack it first"),
    (rb"7z\xbc\xaf|Rar!", "an archive: unpack it, and give the checkpoint inside"),
    (rb"BZh|\xfd7zXZ", "compressed: unpack it first"),
    (rb"\x89HDF", "an HDF5 file, such as Keras writes: only PyTorch's and safetensors files are "
     "read"),
    (rb"\x93NUMPY", "an array of NumPy, and no state dict"),
    (rb"\x08[\x01-\x20]\x12", "an ONNX model: give the PyTorch checkpoint that it came from"),
    (rb"GGUF", "a GGUF file, of a language model"),
    (rb"\x00*$", "full of zeros, as after a broken download: fetch it again"),
)  # fmt: skip


def kind_of(path: Path) -> str:
    """Tells what reads a checkpoint.

    Args:
      path: the file.

    Returns:
      `SAFETENSORS` or `TORCH`.

    Raises:
      TeacherError: it is a file of another kind; says which, and what to do.
    """
    name = repr(str(path))
    try:
        with path.open("rb") as file:
            first = file.read(_FIRST)
    except OSError as error:
        raise TeacherError(f"{name} cannot be read: {error.strerror}.") from error
    if not first:
        raise TeacherError(f"{name} is damaged: it is empty.")
    # Eight bytes of length, then a JSON object.
    if first[8:9] == b"{" and int.from_bytes(first[:8], "little") <= path.stat().st_size:
        return SAFETENSORS
    for beginning, what in _OTHERS:
        if re.match(beginning, first):
            raise TeacherError(f"{name} is {what}.")
    if b"tensorflow" in first or path.suffix == ".index":
        raise TeacherError(
            f"{name} is a TensorFlow checkpoint: only PyTorch's and safetensors files are read."
        )
    if _TEXT.fullmatch(first) and first.lstrip()[:1] not in (b"{", b"["):
        said = first.decode().split("\n")[0][:60]
        raise TeacherError(f"{name} is text ({said!r}), not a checkpoint: {_DOWNLOAD}.")
    if first.lstrip()[:1] in (b"{", b"["):
        raise TeacherError(f"{name} {_of_json(path)}.")
    if first[_TAR_MARK] == b"ustar" and not first.startswith((b"storages", b"sys_info", b"pickle")):
        raise TeacherError(f"{name} is a tar archive: unpack it, and give the checkpoint inside.")
    if first.startswith(b"PK"):
        _require_torchs(path)
        return TORCH
    return SAFETENSORS if path.suffix == ".safetensors" else TORCH


def _of_json(path: Path) -> str:
    if "weight_map" in path.read_text(errors="replace"):
        return (
            "is only the index of weights that are divided over several files: load them together "
            "in PyTorch, and save one state dict with torch.save"
        )
    return f"is text (JSON), not a checkpoint: {_DOWNLOAD}"


def _require_torchs(path: Path) -> None:
    """Raises TeacherError for a whole zip file that torch.save has not written."""
    name = repr(str(path))
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    # Damaged, as its reader says: its directory, a name in it, or the number of its version.
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError):
        return
    if any(member.endswith("/data.pkl") for member in members):
        return
    inside = [member for member in members if re.search(r"\.(?:pth|pt|th|ckpt|bin|tar)$", member)]
    if inside:
        raise TeacherError(f"{name} is a zip archive: unpack it, and give {inside[0]!r} in it.")
    if members and all(member.endswith(".npy") for member in members):
        raise TeacherError(f"{name} holds arrays of NumPy (npz), and no state dict of PyTorch.")
