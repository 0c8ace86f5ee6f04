"""Files of `torch.save`, which are pickles: read with `weights_only=True`, never executed."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

from adadfq_jax.errors import TeacherError, install_command

WAY_OUT = (
    "in a program that you trust, load the network and write torch.save(model.state_dict(), FILE)"
)
_FOLDER = 0x10  # of a zip member's MS-DOS attributes


def read_torch(path: Path) -> Any:
    """Reads whatever tensors, numbers and texts a file of `torch.save` holds.

    Args:
      path: a zip file of today's format, whose checksums are verified, or one of the format before
        torch 1.6, which has none.

    Raises:
      TeacherError: torch is missing, or the file is damaged, or holds more than that.
    """
    name = repr(str(path))
    try:
        import torch
    except ImportError as error:
        raise TeacherError(
            f"reading {name} needs torch: {install_command('torch')}, or convert the file "
            "once where torch is installed."
        ) from error
    try:
        # torch reads everything that does not begin so as its older format.
        with path.open("rb") as file:
            zipped = file.read(2) == b"PK"
        if zipped:
            _check_archive(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it would say is said by the errors below
            return torch.load(path, map_location="cpu", weights_only=True)
    except TeacherError:
        raise
    # Any: a damaged pickle can make the reader raise whatever Python can.
    except Exception as error:
        reason = str(error).strip()
        if refused := re.search(r"(?:GLOBAL|class) (\S+)", reason):
            raise TeacherError(
                f"{name} is refused, and nothing in it was executed: it holds more than weights "
                f"(it asks for {refused[1]}), and reading that could execute any code; {WAY_OUT}."
            ) from error
        if refused := re.search(r"Unsupported operand \d+", reason):
            raise TeacherError(
                f"{name} is refused, and nothing in it was executed: it is damaged or holds more "
                f"than weights ({refused[0]}), and reading that could execute any code; {WAY_OUT}."
            ) from error
        reason = reason.split("\n")[0].rstrip(".")
        if not re.search("[a-z]{2}", reason):  # a KeyError says its key alone
            reason = f"{type(error).__name__} {reason}".rstrip()
        raise TeacherError(f"{name} is not a readable PyTorch file: {reason[:200]}.") from error


def _check_archive(path: Path) -> None:
    """Raises TeacherError where a zip file is not one of torch's, or its checksums do not hold."""
    name = repr(str(path))
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any("/code/" in member or member.endswith("/constants.pkl") for member in names):
            raise TeacherError(f"{name} is a TorchScript archive, which is a program; {WAY_OUT}.")
        pickles = [member for member in names if re.fullmatch(r"[^/]+/data\.pkl", member)]
        folders = {member.split("/")[0] for member in names}
        if len(pickles) != 1 or len(folders) != 1 or len(set(names)) != len(names):
            raise TeacherError(
                f"{name} is a zip archive, but not one of torch.save: it holds "
                f"{', '.join(sorted(names)[:4]) or 'nothing'}."
            )
        # Stored members are no larger than the file, so that checking them takes bounded time.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise TeacherError(f"{name} has compressed members, which torch.save never writes.")
        # torch reads no bytes of a member with the attribute of a folder, and says nothing.
        if any(member.external_attr & _FOLDER for member in members):
            raise TeacherError(f"{name} is damaged: files in it are marked as folders.")
        if (damaged := archive.testzip()) is not None:
            raise TeacherError(f"{name} is damaged: the checksum of {damaged!r} does not hold.")
