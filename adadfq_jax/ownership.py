"""One owner of a folder: on a disk by a lock of the kernel, in Cloud Storage by a lease."""

import contextlib
import fcntl
import json
import threading
import time
from pathlib import Path

from adadfq_jax.errors import WorkdirInUseError
from adadfq_jax.storage import is_remote, name_of_this_process, write_whole

LOCK, LEASE = ".lock", ".lease"

# A lease is renewed three times in its life, and what was written is everywhere after a moment.
_SECONDS_OF_LEASE = 60.0
_SECONDS_TO_SETTLE = 2.0


class Lock:
    """Of a folder on a disk. The kernel drops it with its owner: one killed leaves none behind."""

    def __init__(self, folder: Path, name: str = LOCK):
        """Takes it.

        Raises:
          WorkdirInUseError: another process has it.
          OSError: the folder cannot be written.
        """
        self._file = open(folder / name, "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise _in_use(folder) from error

    def check(self) -> None:
        """Does nothing: a lock cannot be lost."""

    def close(self) -> None:
        """Gives it back."""
        self._file.close()


class Lease:
    """Of a folder in Cloud Storage, where there are no locks: who wrote it last, and until when.

    It is renewed by a thread until it is given back; that of a killed owner runs out. Who finds the
    lease of another waits until it is renewed, and so belongs to one who lives, or runs out. All
    clocks are taken to be right to within a few seconds.
    """

    def __init__(self, folder: Path):
        """Takes it; waits for the end of the lease of an owner that is gone.

        Raises:
          WorkdirInUseError: another process has it and lives.
        """
        self._folder, self._owner = folder, name_of_this_process()
        found = _read(folder)
        while found is not None and time.time() < found["until"]:
            time.sleep(min(1.0, _SECONDS_OF_LEASE / 10))
            before, found = found, _read(folder)
            if found is not None and found != before:
                raise _in_use(folder, found["owner"])
        self._renew()
        # Of several that take it at the same moment, the last one has it.
        time.sleep(_SECONDS_TO_SETTLE)
        self.check()
        self._given_back = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def _renew(self) -> None:
        lease = {"owner": self._owner, "until": time.time() + _SECONDS_OF_LEASE}
        write_whole(self._folder / LEASE, json.dumps(lease).encode())

    def _is_ours(self) -> bool:
        return (_read(self._folder) or {}).get("owner") == self._owner

    def _keep(self) -> None:
        while not self._given_back.wait(_SECONDS_OF_LEASE / 3):
            # What the network refuses now it may grant a third of a lease later.
            with contextlib.suppress(Exception):
                if self._is_ours():
                    self._renew()

    def check(self) -> None:
        """Checks that the folder is still ours, before something is written into it.

        Raises:
          WorkdirInUseError: another process took it, while this one was stopped or cut off.
        """
        if not self._is_ours():
            raise _in_use(self._folder, (_read(self._folder) or {}).get("owner"))

    def close(self) -> None:
        """Gives it back."""
        self._given_back.set()
        self._thread.join()
        with contextlib.suppress(Exception):  # it runs out by itself
            if self._is_ours():
                (self._folder / LEASE).unlink()


def own(folder: Path) -> Lock | Lease:
    """Takes a folder.

    Raises:
      WorkdirInUseError: another process has it.
    """
    return Lease(folder) if is_remote(folder) else Lock(folder)


def is_leased(folder: Path) -> bool:
    """Tells whether a folder in Cloud Storage has an owner, or had one a minute ago."""
    found = _read(folder)
    return found is not None and time.time() < found["until"]


def _read(folder: Path) -> dict | None:
    try:
        return json.loads((folder / LEASE).read_text())
    except FileNotFoundError:
        return None


def _in_use(folder: Path, owner: str | None = None) -> WorkdirInUseError:
    who = f" ({owner})" if owner else ""
    return WorkdirInUseError(
        f"workdir {str(folder)!r} is in use by another run{who}; wait for it or choose another."
    )
