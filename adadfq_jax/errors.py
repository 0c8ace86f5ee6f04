"""The exceptions of this package: few, typed, each message one sentence for a person."""

import difflib
from collections.abc import Iterable


class AdaDFQError(Exception):
    """Base of every error that this package raises on purpose.

    Attributes:
      shared: whether, of several processes that play one game, all raise it.
    """

    shared = False


class ConfigError(AdaDFQError):
    """A configuration, an argument or a workdir that cannot be used."""


class WorkdirInUseError(ConfigError):
    """A workdir that another process owns."""


class TeacherError(AdaDFQError):
    """A teacher that cannot be read, or does not fit its architecture."""


class DataError(AdaDFQError):
    """An evaluation set that cannot be read, or does not fit the teacher."""


class CheckpointError(AdaDFQError):
    """A workdir without a checkpoint that can be restored."""


class StorageError(AdaDFQError):
    """Cloud Storage could not be reached; the same command goes on when it can."""


class ExportError(AdaDFQError):
    """An exported file that cannot be written or read."""


class DivergedError(AdaDFQError):
    """A loss or a gradient of the game became infinite or not a number."""

    shared = True


class VerificationError(AdaDFQError):
    """Two networks that should be equal are not."""


class StoppedError(AdaDFQError):
    """The run was asked to stop, and did so; in a workdir, after writing a checkpoint.

    Attributes:
      signal: the number of the signal that asked for it.
    """

    shared = True

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def install_command(extra: str) -> str:
    """Returns the command that installs an extra of `setup.cfg`; no index has this project."""
    return f"pip install '.[{extra}]' in the source folder"


_FEW = 12


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint for a misspelt name: the nearest known ones, or all where they are few.

    Args:
      name: what was given.
      known: what would have been accepted.
    """
    known = sorted(known)
    if not known:
        return "there is none."
    if close := difflib.get_close_matches(name, known, n=3, cutoff=0.6):
        return f"did you mean {' or '.join(close)}?"
    if len(known) > _FEW:
        some = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        return f"there are {len(known)}, the nearest {', '.join(some)}."
    return f"known: {', '.join(known)}."
