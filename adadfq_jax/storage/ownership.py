"""A folder's one owner: by a kernel lock on a disk, by a lease in Cloud Storage."""

import contextlib
import fcntl
import json
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from adadfq_jax.errors import ConfigError, StorageError, WorkdirInUseError
from adadfq_jax.storage.files import create, is_remote, name_of_this_process, write_whole

LOCK, LEASE = ".lock", ".lease"

# A lease is renewed every third of its length. Its owner stops before it ends, as clocks differ.
_SECONDS_OF_LEASE = 60.0
_SECONDS_OF_MARGIN = 10.0


class Lock:
    """The lock of a folder on a disk. The kernel removes it when its process ends or is killed."""

    def __init__(self, folder: Path, name: str = LOCK):
        """Takes the lock.

        Args:
          folder: the folder.
          name: name of the file in it that is locked.

        Raises:
          WorkdirInUseError: another process has the lock.
          ConfigError: the file system has no locks.
          OSError: the folder cannot be written.
        """
        # Opened to append, so that a user's file of this name keeps its content.
        self._file = open(folder / name, "a")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            if isinstance(error, BlockingIOError):
                raise _in_use(folder) from error
            raise ConfigError(
                f"workdir {str(folder)!r} cannot be locked ({error.strerror}); choose one on "
                "a file system that has locks."
            ) from error

    def check(self) -> None:
        """Does nothing, since a lock cannot be lost."""

    def close(self) -> None:
        """Releases the lock."""
        self._file.close()


class Lease:
    """The lease of a folder in Cloud Storage: an object that names an owner and a time of expiry.

    Leases are numbered, each object is created by one process, and the newest counts. A thread
    renews the lease until the owner releases it; the lease of a killed owner expires. A process
    that finds another's lease waits: either the lease is renewed, then the folder is in use, or it
    expires. Clocks are assumed to be right to within some seconds.
    """

    def __init__(self, folder: Path):
        """Takes the lease; first waits until that of a killed owner expires.

        Args:
          folder: the folder, in Cloud Storage.

        Raises:
          WorkdirInUseError: a running process has the lease.
        """
        number, found = _newest(folder)
        while time.time() < found["until"]:
            time.sleep(min(1.0, _SECONDS_OF_LEASE / 10))
            before, (number, found) = found, _newest(folder)
            if found != before and time.time() < found["until"]:
                raise _in_use(folder, found["owner"])
        self._folder = folder
        self._object = folder / LEASE / f"{number + 1:06}"
        # With a random part, since processes in two containers can have the same host and number.
        self._owner = f"{name_of_this_process()}-{uuid.uuid4().hex[:8]}"
        until, content = self._next()
        if not create(self._object, content):
            raise _in_use(folder)
        self._until = until
        for path in _leases(folder):
            if int(path.name) <= number:
                path.unlink(missing_ok=True)
        self._given_back = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _next(self) -> tuple[float, bytes]:
        until = time.time() + _SECONDS_OF_LEASE
        return until, json.dumps({"owner": self._owner, "until": until}).encode()

    def _is_ours(self) -> bool:
        return time.time() < self._until - _SECONDS_OF_MARGIN

    def _keep(self) -> None:
        while not self._given_back.wait(_SECONDS_OF_LEASE / 3):
            until, content = self._next()
            # A failed renewal is tried again, while there is time.
            with contextlib.suppress(Exception):
                if self._is_ours():
                    write_whole(self._object, content)
                    self._until = until

    def check(self) -> None:
        """Checks that this process still has the lease; called before every write.

        Raises:
          StorageError: the lease expired, while this process was stopped or cut off.
        """
        if not self._is_ours():
            raise StorageError(
                f"the lease of workdir {str(self._folder)!r} ran out: for a minute this process "
                "was stopped or did not reach Cloud Storage; run the same command to go on."
            )

    def close(self) -> None:
        """Releases the lease."""
        self._given_back.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # else the lease expires by itself
            if self._is_ours():
                write_whole(self._object, json.dumps({"owner": "nobody", "until": 0}).encode())


def own(folder: Path) -> Lock | Lease:
    """Makes this process the owner of a folder.

    Args:
      folder: the folder, on a disk or in Cloud Storage.

    Returns:
      The ownership; `close` ends it.

    Raises:
      WorkdirInUseError: another process owns the folder.
    """
    return Lease(folder) if is_remote(folder) else Lock(folder)


def is_leased(folder: Path) -> bool:
    """Tells whether a folder in Cloud Storage has an owner, or had one within the last minute."""
    return time.time() < _newest(folder)[1]["until"]


def _leases(folder: Path) -> list[Path]:
    return sorted((folder / LEASE).glob("[0-9]*"))


def _newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """Returns the number and the content of the newest lease; number 0 where there is none."""
    paths = _leases(folder)
    if not paths:
        return 0, {"owner": "nobody", "until": 0}
    try:
        said = json.loads(paths[-1].read_text())
        return int(paths[-1].name), {"owner": str(said["owner"]), "until": float(said["until"])}
    except FileNotFoundError:  # another process has just taken over, and removed it
        return _newest(folder)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"'{paths[-1]}' is no lease; remove it where no run uses this workdir."
        ) from error


def _in_use(folder: Path, owner: str | None = None) -> WorkdirInUseError:
    who = f" ({owner})" if owner else ""
    return WorkdirInUseError(
        f"workdir {str(folder)!r} is in use by another run{who}; wait for it or choose another."
    )
