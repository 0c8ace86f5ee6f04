"""Where files lie: on a disk, or in Cloud Storage, whose objects are neither appended nor renamed.

A path on a disk is a `pathlib.Path`, one in Cloud Storage an `etils.epath.Path`; what the two do
alike, callers do with them, and the rest is here.
"""

import contextlib
import logging
import os
import re
import shutil
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import etils.epath

from adadfq_jax.errors import AdaDFQError, ConfigError, StorageError, install_command

_REMOTE = "gs://"
_ELSEWHERE = re.compile(r"\w+:/")  # not two slashes, since pathlib makes one of them

# Whose errors, and errors that pass through them, are those of the network or of Cloud Storage.
_LIBRARIES = ("aiohttp", "fsspec", "gcsfs", "google", "requests", "urllib3")
_NO_CREDENTIALS = ("DefaultCredentialsError", "RefreshError")
_LATER = (408, 429)  # of HTTP, what may be asked again: too slow, too often


def locate(path: str | Path) -> Path:
    """Returns a path on a disk or, of `gs://BUCKET/NAME`, in Cloud Storage.

    Raises:
      ConfigError: the storage is another one, or cannot be read.
      StorageError: Cloud Storage is not reached.
    """
    text = os.fspath(path)
    if not text.startswith(_REMOTE):
        if _ELSEWHERE.match(text):
            raise ConfigError(
                f"{text!r} must be on a disk or in Cloud Storage (a string, 'gs://BUCKET/NAME')."
            )
        return _at_home(path)
    if not isinstance(path, str):  # located already: asking again would cost a request
        return path
    try:
        import fsspec
        import gcsfs  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise ConfigError(f"{text!r} needs {error.name}: {install_command('gcs')}.") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # what it has to say, its errors say
    # By fsspec, whether TensorFlow is installed or not.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Others write there too: what was listed before says little.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    found = etils.epath.Path(text)
    with translated(f"{text!r} cannot be read"):
        found.exists()
    return found


def on_a_disk(path: str | Path) -> Path:
    """Returns the path of what is read or written on a disk alone.

    Raises:
      ConfigError: it is not on a disk.
    """
    text = os.fspath(path)
    if _ELSEWHERE.match(text):
        raise ConfigError(f"{text!r} must be on a disk.")
    return _at_home(path)


def _at_home(path: str | Path) -> Path:
    # A shell leaves the ~ of --workdir=~/runs as it is; where there is no home it stays, too.
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def is_remote(path: Path) -> bool:
    """Tells whether a path is in Cloud Storage."""
    return os.fspath(path).startswith(_REMOTE)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns what the libraries of Cloud Storage raise into one sentence; also as a decorator.

    Errors of the disk go through as they are.

    Raises:
      ConfigError: `what`, and why: there is no such thing, or no permission.
      StorageError: `what`, and why: it is not reached, or fails.
    """
    try:
        yield
    except AdaDFQError:
        raise
    except Exception as error:
        if not _is_of_storage(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        code = int(getattr(error, "code", None) or 0)
        refused = (
            isinstance(error, FileNotFoundError | PermissionError)
            or type(error).__name__ in _NO_CREDENTIALS
            or (400 <= code < 500 and code not in _LATER)
        )
        if refused:
            raise ConfigError(f"{what}: {reason}.") from error
        raise StorageError(
            f"{what}: {reason}; run the same command again when Cloud Storage is reached."
        ) from error


def _is_of_storage(error: Exception) -> bool:
    if isinstance(error, OSError | ValueError) and _REMOTE in str(error):
        return True
    frames = (
        frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)
    )
    modules = (type(error).__module__, *frames)
    return any(module.partition(".")[0] in _LIBRARIES for module in modules)


def absolute(path: Path) -> Path:
    """Returns a path that does not depend on where this process is."""
    return path if is_remote(path) else path.absolute()


def check_replaceable(
    path: Path, what: str, is_own: Callable[[Path], bool], overwrite: bool
) -> None:
    """Checks that nothing of anybody's is lost where a file or a folder will be written.

    Args:
      path: the place.
      what: what adadfq writes there, such as "a report".
      is_own: tells whether something is that, and written by adadfq.
      overwrite: whether an earlier one may be replaced.

    Raises:
      ConfigError: there is an earlier one, or something else.
    """
    if path.exists() and not is_own(path):
        refuse_foreign(path, what)
    # A link to nothing would be replaced, too.
    if not overwrite and (path.exists() or (not is_remote(path) and path.is_symlink())):
        raise ConfigError(f"{str(path)!r} exists; --overwrite replaces it.")


def refuse_foreign(path: Path, what: str) -> NoReturn:
    """Raises ConfigError for a place where something is that adadfq did not write.

    Args:
      path: the place.
      what: what it would be if adadfq had written it.
    """
    raise ConfigError(
        f"{str(path)!r} would be replaced, but is not {what} that adadfq wrote; move it away, or "
        "choose another place."
    )


def make_folder(path: Path) -> None:
    """Makes a folder and those above it; in Cloud Storage there is nothing to make."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one piece, also where other processes write it at the same time."""
    if is_remote(path):
        path.write_bytes(content)
        return
    with written_whole(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a path to write a file or a folder to, which takes its place once nothing is raised.

    A link stays a link: what it names is replaced. A folder is replaced as a whole, and a kill at
    any moment leaves the old one or the new one whole.

    Args:
      path: the place, on a disk.
    """
    if path.is_symlink():
        path = path.resolve()
    # The suffix stays, for those who read the file before it has its name.
    name = f".{path.stem}.{name_of_this_process()}"
    partial = path.with_name(f"{name}.partial{path.suffix}")
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            old = path.with_name(f"{name}.old")
            path.replace(old)
            partial.replace(path)
            shutil.rmtree(old)
        else:
            os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def create(path: Path, content: bytes) -> bool:
    """Writes an object of Cloud Storage where there is none; of several that try, one succeeds.

    Returns:
      Whether it is ours: written here, by this call or one whose answer was lost.
    """
    import fsspec

    system, name = fsspec.core.url_to_fs(os.fspath(path))
    try:
        system.pipe_file(name, content, mode="create")
    except FileExistsError:
        return path.read_bytes() == content
    return True


def remove_folder(path: Path) -> None:
    """Removes a folder and all in it, as far as it is there."""
    if is_remote(path):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder over whatever is there; in Cloud Storage, file by file."""
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
    """Gives a file on a disk, for a library that reads nothing else: the same, or a copy.

    An error that names the copy names the file instead.
    """
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with translated(f"{str(path)!r} cannot be read"):
            if path.exists():
                copy.write_bytes(path.read_bytes())
        with _naming(copy, path):
            yield copy


@contextlib.contextmanager
def writable(path: Path) -> Iterator[Path]:
    """Gives a place on a disk, for a library that writes nowhere else; what is there goes out."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        with _naming(copy, path):
            yield copy
        write_whole(path, copy.read_bytes())


@contextlib.contextmanager
def _naming(copy: Path, path: Path) -> Iterator[None]:
    try:
        yield
    except AdaDFQError as error:
        error.args = (str(error).replace(str(copy), str(path)), *error.args[1:])
        raise


def name_of_this_process() -> str:
    """Returns a name that no other process has now: its host and number."""
    return f"{socket.gethostname()}-{os.getpid()}"
