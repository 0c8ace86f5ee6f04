"""Several processes that play one game: how they start, agree, and share what one of them knows.

All run the same program on the same configuration; process 0 alone writes the workdir, and reads
what is in it while the game is played.
Whatever only one process can know (a signal, a file that it cannot read, a checkpoint) is made
known to all here, so that they go on or end together. With one process, nothing here does anything.
"""

import contextlib
import hashlib
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from adadfq_jax import errors
from adadfq_jax.devices import rendezvous
from adadfq_jax.errors import AdaDFQError, ConfigError, StorageError
from adadfq_jax.storage.files import translated

_LONGEST_MESSAGE = 1000  # characters, each at most twelve bytes of JSON
_SECONDS_TO_START = 300


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    seconds: int = _SECONDS_TO_START,
) -> str:
    """Joins the other processes; to be called before JAX looks for devices.

    On Cloud TPU and under Slurm nothing need be said.

    Args:
      coordinator: `host:port` of process 0.
      processes: how many there are.
      index: which of them this one is, from 0.
      seconds: how long to wait for the others.

    Returns:
      One line on what was found.

    Raises:
      ConfigError: a part is missing or wrong, or not all processes came.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": index}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise ConfigError(
            f"--distributed needs all of {', '.join(given)}, or none on Cloud TPU and under Slurm; "
            f"{', '.join(missing)} is missing."
        )
    if not missing:
        match = re.fullmatch(r".+:(\d+)", coordinator)
        if match is None or not 0 < int(match[1]) < 2**16:
            raise ConfigError(f"--coordinator must be HOST:PORT of process 0, not {coordinator!r}.")
        if not 0 <= index < processes:
            raise ConfigError(f"--process must be from 0 to {processes - 1}, not {index}.")
        try:
            absent = rendezvous.missing(coordinator, processes, index, seconds)
        except OSError as error:
            raise ConfigError(
                f"process 0 cannot listen on {coordinator}: {error.strerror}; choose another port."
            ) from error
        if absent:
            raise ConfigError(
                f"the {processes} processes of {coordinator} were not together within {seconds} "
                f"seconds: process {', '.join(map(str, absent))} did not come."
            )
    try:
        jax.distributed.initialize(coordinator, processes, index)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            "--distributed found neither Cloud TPU nor Slurm: say who plays, with --coordinator="
            f"HOST:PORT --processes=N --process=I ({reason})."
            if missing
            else f"the processes of {coordinator} have met, but JAX did not start: {reason}."
        ) from error
    return (
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({jax.devices()[0].device_kind})"
    )


def leads() -> bool:
    """Returns whether this is the process that reads and writes the workdir."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends a stretch of work in all processes alike: an error of one is raised by all.

    Raises:
      AdaDFQError: what the first process that has an error says, of its kind.
    """
    if jax.process_count() == 1:
        yield
        return
    error: Exception | None = None
    try:
        with translated("a file in Cloud Storage fails"):
            yield
    except Exception as caught:  # whatever it is, the others wait to hear of it
        error = caught
    told = json.dumps(error and [type(error).__name__, str(error)[:_LONGEST_MESSAGE]]).encode()
    padded = np.zeros(13 * _LONGEST_MESSAGE, np.uint8)
    padded[: len(told)] = np.frombuffer(told, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    for index, row in enumerate(rows):
        said = json.loads(bytes(row).rstrip(b"\0"))
        if said is not None:
            name, message = said
            kind = getattr(errors, name, None)
            if kind is None:  # unforeseen
                kind, message = ConfigError, f"{name}: {message}"
            told_of = kind(f"process {index}: {message}")
            told_of.shared = True
            raise told_of from error


def check_equal(what: str, text: str) -> None:
    """Checks that all processes were started with the same.

    Args:
      what: its name, for the message.
      text: this process's.

    Raises:
      ConfigError: one has another than process 0; names it.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    rows = multihost_utils.process_allgather(digest)
    others = [str(index) for index, row in enumerate(rows) if not np.array_equal(row, rows[0])]
    if others:
        error = ConfigError(
            f"process {', '.join(others)} was started with another {what} than process 0."
        )
        error.shared = True
        raise error


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends this process where it alone has an error, so that the others do not wait for it.

    At its usual end a process waits for the others, which may be waiting for it in the middle of a
    step; when it is gone, JAX's runtime ends them after a while.
    """
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1 or getattr(error, "shared", False):
            raise
        if isinstance(error, AdaDFQError):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        print(f"process {jax.process_index()} ends, and so do the others.", file=sys.stderr)
        sys.stderr.flush()
        os._exit(os.EX_TEMPFAIL if isinstance(error, StorageError) else 1)


def union(flags: int) -> int:
    """Returns the bits that are set in any process; waits for all that the devices have to do."""
    if jax.process_count() == 1:
        return flags
    return int(np.bitwise_or.reduce(multihost_utils.process_allgather(np.int32(flags))))


def from_leader(make: Callable[[], bytes]) -> bytes:
    """Returns what process 0 makes, in all processes."""
    if jax.process_count() == 1:
        return make()
    content = make() if leads() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # Whole numbers of 32 bits, which no sum over the processes can change.
    words = np.zeros(-(-size // 4), np.int32)
    if leads():
        words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
    return multihost_utils.broadcast_one_to_all(words).tobytes()[:size]


def arrays_from_leader(make: Callable[[], Any], template: Any) -> Any:
    """Returns the tree of arrays that process 0 makes, in all processes.

    Args:
      make: called in process 0.
      template: arrays of the same shapes and types.
    """
    if jax.process_count() == 1:
        return make()
    content = from_leader(
        lambda: b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(make()))
    )
    leaves, start_of = [], 0
    for leaf in jax.tree.leaves(template):
        shape, dtype = np.shape(leaf), jax.dtypes.result_type(leaf)
        count = int(np.prod(shape, dtype=np.int64))
        leaves.append(np.frombuffer(content, dtype, count, start_of).reshape(shape))
        start_of += count * dtype.itemsize
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
