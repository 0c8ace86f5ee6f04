"""Where files lie: on a disk, or in Cloud Storage, whose objects are neither appended nor renamed.

Paths are `pathlib.Path` there and `etils.epath.Path` here; what the two do alike, callers do with
them, and the rest is here.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import etils.epath

from adadfq_jax.errors import ConfigError

_REMOTE = "gs://"


def locate(path: str | Path) -> Path:
    """Returns a path on a disk or, of `gs://BUCKET/NAME`, in Cloud Storage.

    Raises:
      ConfigError: the storage is another one, or cannot be read.
    """
    text = os.fspath(path)
    if not text.startswith(_REMOTE):
        if "://" in text:
            raise ConfigError(f"{text!r} must be on a disk or in Cloud Storage (gs://BUCKET/NAME).")
        return Path(path)
    try:
        import fsspec
        import gcsfs  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise ConfigError(f"{text!r} needs {error.name}: pip install 'adadfq_jax[gcs]'.") from error
    # Others write there too: what was listed before says little.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    found = etils.epath.Path(text)
    with speaking(f"{text!r} cannot be read"):
        found.exists()
    return found


def is_remote(path: Path) -> bool:
    """Tells whether a path is in Cloud Storage."""
    return os.fspath(path).startswith(_REMOTE)


@contextlib.contextmanager
def speaking(what: str) -> Iterator[None]:
    """Turns whatever the libraries of Cloud Storage raise into one sentence.

    Raises:
      ConfigError: `what`, and why.
    """
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of gcsfs, aiohttp and google.auth, without a common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(f"{what}: {reason}.") from error


def absolute(path: Path) -> Path:
    """Returns a path that does not depend on where this process is."""
    return path if is_remote(path) else path.absolute()


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; in Cloud Storage there is nothing to make."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one piece, also where other processes write it at the same time."""
    if is_remote(path):
        path.write_bytes(content)
        return
    owner = f"{socket.gethostname()}-{os.getpid()}"
    partial = path.with_name(f".{path.name}.{owner}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """Removes a folder and all in it, as far as it is there."""
    if is_remote(path):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder to where nothing else is; in Cloud Storage, file by file."""
    remove_folder(target)
    if not is_remote(source):
        target.parent.mkdir(exist_ok=True)
        source.rename(target)
        return
    for file in files_in(source):
        (target / file.relative_to(source)).write_bytes(file.read_bytes())
    source.rmtree()


def files_in(folder: Path) -> Iterator[Path]:
    """Yields all files in a folder and those below it."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from files_in(path)
        else:
            yield path


@contextlib.contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Gives a file on a disk, for a library that reads nothing else: the same, or a copy."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        if path.exists():
            copy.write_bytes(path.read_bytes())
        yield copy


@contextlib.contextmanager
def writable(path: Path) -> Iterator[Path]:
    """Gives a place on a disk, for a library that writes nowhere else; what is there goes out."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        yield copy
        write_whole(path, copy.read_bytes())


def name_of_this_process() -> str:
    """Returns a name that no other process has: host, number, and something random."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
