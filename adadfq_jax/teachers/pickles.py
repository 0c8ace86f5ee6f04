"""Files of `torch.save`, which are pickles: read with `weights_only=True`, never executed."""

import dataclasses
import io
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

from adadfq_jax.errors import TeacherError, install_command
from adadfq_jax.teachers import inert

WAY_OUT = (
    "in a program that you trust, load the network and write torch.save(model.state_dict(), FILE)"
)
_PICKLE = r"[^/]+/data\.pkl"
_FOLDER = 0x10  # of a zip member's MS-DOS attributes
_MAGIC = 0x1950A86A20F9469CFC6C  # begins a file of torch before 1.6
# Nothing that a training program saves on purpose. Such a file is somebody's attack, and is refused
# although its objects would be skipped like any others.
_HOSTILE = re.compile(
    r"(?:.*\.)?(?:os|posix|nt|sys|subprocess|shutil|socket|importlib|runpy|ctypes|pty)\..*|"
    r"(?:builtins|__builtin__)\.(?:eval|exec|execfile|compile|open|__import__)"
)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a file of `torch.save` holds.

    Attributes:
      content: tensors, numbers, texts and containers, and a `Skipped` for each other object.
      skipped: names of those objects' classes.
    """

    content: Any
    skipped: tuple[str, ...] = ()


def read_torch(path: Path) -> Loaded:
    """Reads the tensors, numbers and texts that a file of `torch.save` holds.

    Args:
      path: a zip file of today's format, whose checksums are verified, or one of the format before
        torch 1.6, which has none.

    Raises:
      TeacherError: torch is missing, or the file is damaged, or asks for a program to be run.
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
            try:
                # Not by its name: torch reads a file called .safetensors as one.
                with path.open("rb") as file:
                    return Loaded(torch.load(file, map_location="cpu", weights_only=True))
            except pickle.UnpicklingError:
                content, skipped = _without_objects(path, zipped)
                torch.serialization.add_safe_globals([inert.Skipped])
                content = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
                return Loaded(content, skipped)
    except TeacherError:
        raise
    # Any: a damaged pickle can make the reader raise whatever Python can.
    except Exception as error:
        ends = isinstance(error, EOFError | zipfile.BadZipFile | struct.error)
        if ends or "EOF" in str(error):
            raise TeacherError(
                f"{name} is cut short or damaged, as by a download that was interrupted; copy or "
                "download it again."
            ) from error
        reason = str(error).strip().split("\n")[0].rstrip(".")
        if not re.search("[a-z]{2}", reason):  # a KeyError says its key alone
            reason = f"{type(error).__name__} {reason}".rstrip()
        raise TeacherError(f"{name} is not a readable PyTorch file: {reason[:200]}.") from error


def _without_objects(path: Path, zipped: bool) -> tuple[bytes, tuple[str, ...]]:
    """Returns a file's bytes with a pickle that holds no objects, and what was left out."""
    if not zipped:
        return _legacy_without_objects(path)
    written = io.BytesIO()
    names = ()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(written, "w") as copy:
        for member in archive.infolist():
            content = archive.read(member)
            if re.fullmatch(_PICKLE, member.filename):
                content, _, names = inert.cleaned(io.BytesIO(content))
                _refuse_hostile(path, names)
            copy.writestr(member.filename, content)
    return written.getvalue(), _of_objects(names)


def _legacy_without_objects(path: Path) -> tuple[bytes, tuple[str, ...]]:
    content = path.read_bytes()
    file = io.BytesIO(content)
    written, magic, names = inert.cleaned(file)
    _refuse_hostile(path, names)
    if magic != _MAGIC:
        kind = magic.name if isinstance(magic, inert.Skipped) else type(magic).__name__
        raise TeacherError(
            f"{str(path)!r} is a pickle, but not one of torch.save: it holds a {kind}; {WAY_OUT}."
        )
    skipped = set()
    # The format's version, the machine that wrote it, the content, and the order of the tensors'
    # memory, which follows.
    for _ in range(4):
        pickled, _, names = inert.cleaned(file)
        _refuse_hostile(path, names)
        written += pickled
        skipped |= set(names)
    return written + content[file.tell() :], _of_objects(tuple(sorted(skipped)))


def _of_objects(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if not inert.MACHINERY.fullmatch(name))


def _refuse_hostile(path: Path, names: tuple[str, ...]) -> None:
    if hostile := next((name for name in names if _HOSTILE.fullmatch(name)), None):
        raise TeacherError(
            f"{str(path)!r} is refused, and nothing in it was executed: it asks for {hostile}, "
            f"and reading that could execute any code; {WAY_OUT}."
        )


def _check_archive(path: Path) -> None:
    """Raises TeacherError where a zip file is not one of torch's, or its checksums do not hold."""
    name = repr(str(path))
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        if any("/code/" in member or member.endswith("/constants.pkl") for member in names):
            raise TeacherError(
                f"{name} is a TorchScript archive, which is a program; save the state dict of "
                "torch.jit.load(FILE), or of the network that it was made of, with torch.save."
            )
        pickles = [member for member in names if re.fullmatch(_PICKLE, member)]
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
