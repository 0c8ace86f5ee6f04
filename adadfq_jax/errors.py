"""The exceptions of this package: few, typed, each message one sentence for a person."""

import difflib
import importlib.util
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


# By extra of `setup.cfg`, the packages without which what it is for cannot be done.
EXTRAS = {
    "allocate": ("matplotlib", "scipy"),
    "export": ("onnx", "onnxruntime"),
    "report": ("matplotlib", "scipy", "tensorboardX"),
    "torch": ("torch",),
}


def install_command(extra: str) -> str:
    """Returns the command that installs an extra of `setup.cfg`; no index has this project."""
    return f"./launch/local.sh --with={extra} in the source folder"


def missing_packages(extra: str) -> list[str]:
    """Returns the packages of an extra that are not installed; none of them is imported."""
    return [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]


def require_extra(extra: str, what: str) -> None:
    """Makes sure that an extra is installed, before anything is loaded that takes time.

    Args:
      extra: a name in `EXTRAS`.
      what: what needs it, as the beginning of a sentence.

    Raises:
      ConfigError: it is not; the message says how to install it.
    """
    if missing := missing_packages(extra):
        raise ConfigError(f"{what} needs {', '.join(missing)}: {install_command(extra)}.")


_FEW = 12
_NEAR = 0.6  # of `difflib`'s ratio, which is 1 for equal names
_BEGINNING = 4  # letters with which a name begins, so that it is meant


def near(name: str, known: Iterable[str]) -> list[str]:
    """Returns the known names, three at most, of which a name may be a misspelling.

    Of dotted names only what differs is compared, so that `game.x` is not near to all of `game`.
    """
    found = sorted((-_likeness(name, other), len(other), other) for other in known)
    return [other for unlikeness, _, other in found[:3] if unlikeness <= -_NEAR]


def _likeness(name: str, other: str) -> float:
    if len(other) >= _BEGINNING and name.startswith(other):
        return 1.0
    left, right = name.split("."), other.split(".")
    while len(left) > 1 and len(right) > 1 and left[0] == right[0]:
        left, right = left[1:], right[1:]
    right = right if len(left) > 1 else right[-1:]  # a field without its section
    given, there = ".".join(left), ".".join(right)
    if len(given) >= _BEGINNING and there.startswith(given):
        return 1.0
    return difflib.SequenceMatcher(None, given, there).ratio()


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint for a misspelt name: the nearest known ones, or all where they are few.

    Args:
      name: what was given.
      known: what would have been accepted.
    """
    known = sorted(known)
    if not known:
        return "there is none."
    if close := near(name, known):
        return f"did you mean {' or '.join(close)}?"
    if len(known) > _FEW:
        some = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
        return f"there are {len(known)}, the nearest {', '.join(some)}."
    return f"known: {', '.join(known)}."
