"""Files on a disk and in Cloud Storage, where files can be neither appended to nor renamed.

A path on a disk is a `pathlib.Path`, one in Cloud Storage an `etils.epath.Path`. Callers use the
methods that behave the same in both; the functions here are for what differs.
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

# An error that these libraries raise, or that passes through them, is one of the network or of
# Cloud Storage.
_LIBRARIES = ("aiohttp", "fsspec", "gcsfs", "google", "requests", "urllib3")
_NO_CREDENTIALS = ("DefaultCredentialsError", "RefreshError")
_LATER = (408, 429)  # HTTP codes (timeout, too many requests) after which a retry makes sense


def locate(path: str | Path) -> Path:
    """Returns the path on a disk or in Cloud Storage that a text names.

    Args:
      path: a path on a disk, or `gs://BUCKET/NAME`.

    Raises:
      ConfigError: the path names another kind of storage, or Cloud Storage refuses to read it.
      StorageError: Cloud Storage is not reached.
    """
    text = os.fspath(path)
    if not text.startswith(_REMOTE):
        if _ELSEWHERE.match(text):
            raise ConfigError(
                f"{text!r} must be on a disk or in Cloud Storage (a string, 'gs://BUCKET/NAME')."
            )
        return _at_home(path)
    if not isinstance(path, str):  # from an earlier call, whose check of the bucket is enough
        return path
    try:
        import fsspec
        import gcsfs  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise ConfigError(f"{text!r} needs {error.name}: {install_command('gcs')}.") from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs what its errors say as well
    # etils then uses fsspec, whether TensorFlow is installed or not.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # No cached listings, since other processes write there too.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    found = etils.epath.Path(text)
    with translated(f"{text!r} cannot be read"):
        found.exists()
    return found


def on_a_disk(path: str | Path) -> Path:
    """Returns the path of a file or folder that has to be on a disk.

    Raises:
      ConfigError: the path is not on a disk.
    """
    text = os.fspath(path)
    if _ELSEWHERE.match(text):
        raise ConfigError(f"{text!r} must be on a disk.")
    return _at_home(path)


def _at_home(path: str | Path) -> Path:
    # A shell does not expand the ~ of --workdir=~/runs. Without a home folder it stays.
    with contextlib.suppress(RuntimeError):
        return Path(path).expanduser()
    return Path(path)


def is_remote(path: Path) -> bool:
    """Tells whether a path is in Cloud Storage."""
    return os.fspath(path).startswith(_REMOTE)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turns errors of the Cloud Storage libraries into this package's; also usable as a decorator.

    Errors of a disk pass through unchanged.

    Args:
      what: what failed, the first part of the message; the reason follows.

    Raises:
      ConfigError: there is no such file or bucket, or no permission.
      StorageError: Cloud Storage is not reached, or fails.
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
    """Returns a path that does not depend on the working directory."""
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


def check_folder_of(path: Path) -> None:
    """Checks that the folder is there in which a file will be written; Cloud Storage has none.

    Raises:
      ConfigError: it is not.
    """
    if not is_remote(path) and not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name} in.")


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
    """Makes a folder and its parents; does nothing in Cloud Storage, which has no folders."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the old content or the new, never a part of it.

    Several processes may write the same file at the same time.

    Args:
      path: the file, on a disk or in Cloud Storage.
      content: its bytes.
    """
    if is_remote(path):
        path.write_bytes(content)
        return
    with written_whole(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path; what is written there is moved to `path` if nothing is raised.

    A link stays a link, and the file or folder that it names is replaced. A folder is replaced as a
    whole: a kill at any moment leaves a whole folder, the old one or the new one.

    Args:
      path: the final place of the file or folder, on a disk.
    """
    if path.is_symlink():
        path = path.resolve()
    # The suffix is kept, because libraries tell a file's format by it.
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
    """Writes an object of Cloud Storage if there is none; of several processes, one succeeds.

    Args:
      path: the object, in Cloud Storage.
      content: its bytes, which no other process writes.

    Returns:
      Whether this process wrote the object, by this call or by an earlier try whose answer was
      lost.
    """
    import fsspec

    system, name = fsspec.core.url_to_fs(os.fspath(path))
    try:
        system.pipe_file(name, content, mode="create")
    except FileExistsError:
        return path.read_bytes() == content
    return True


def remove_folder(path: Path) -> None:
    """Removes a folder and all in it; does nothing where it does not exist."""
    if is_remote(path):
        path.rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder, and replaces the target if it exists; in Cloud Storage, file by file."""
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
    """Yields a path on a disk from which a file can be read, for libraries that need one.

    A file in Cloud Storage is copied to a temporary file. Errors of this package inside the context
    name the original.

    Args:
      path: the file, on a disk or in Cloud Storage.
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
    """Yields a path on a disk to which a file can be written, for libraries that need one.

    For a file in Cloud Storage this is a temporary file, which is copied at the end of the context.

    Args:
      path: the file, on a disk or in Cloud Storage.
    """
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
    """Returns a name of this process: its host and its number, such as "node3-4711"."""
    return f"{socket.gethostname()}-{os.getpid()}"
