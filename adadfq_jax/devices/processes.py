"""One run in several processes: how they start, agree, and share what only one of them knows.

All processes run the same program on the same configuration. Process 0 alone writes the workdir,
and alone reads it during the run. What only one process can know (a signal, an error, a checkpoint)
is sent to all here, so that all go on or all end. With one process, these functions do nothing.
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
    """Joins the other processes of a run; call it before JAX looks for devices.

    On Cloud TPU and under Slurm no argument is needed.

    Args:
      coordinator: `host:port` of process 0.
      processes: number of processes.
      index: this process's index, from 0.
      seconds: how long to wait for the others.

    Returns:
      One line on the processes and devices that were found.

    Raises:
      ConfigError: an argument is missing or wrong, or a process did not join in time.
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
                f"not all {processes} processes joined {coordinator} within {seconds} seconds: "
                f"process {', '.join(map(str, absent))} is missing."
            )
    try:
        jax.distributed.initialize(coordinator, processes, index)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(
            "--distributed found neither Cloud TPU nor Slurm: name the processes with "
            f"--coordinator=HOST:PORT --processes=N --process=I ({reason})."
            if missing
            else f"all processes joined {coordinator}, but JAX did not start: {reason}."
        ) from error
    return (
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({jax.devices()[0].device_kind})"
    )


def leads() -> bool:
    """Tells whether this is process 0, which reads and writes the workdir."""
    return jax.process_index() == 0


@contextlib.contextmanager
def sharing_errors() -> Iterator[None]:
    """Raises an error of one process in all processes, at the end of the context.

    Raises:
      AdaDFQError: the error of the first process that has one, with its type and message.
    """
    if jax.process_count() == 1:
        yield
        return
    error: Exception | None = None
    try:
        with translated("a file in Cloud Storage fails"):
            yield
    except Exception as caught:  # of any kind, since the other processes wait for word of it
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
            if kind is None:  # not one of this package's errors
                kind, message = ConfigError, f"{name}: {message}"
            told_of = kind(f"process {index}: {message}")
            told_of.shared = True
            raise told_of from error


def check_equal(what: str, text: str) -> None:
    """Checks that a text, such as the configuration, is the same in all processes.

    Args:
      what: name of the text, for the message.
      text: the text in this process.

    Raises:
      ConfigError: some processes have another text than process 0; names them.
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
    """Ends this process at once on an error that only it has, so that the others do not hang.

    A process that ends as usual waits for the others, and these may wait for it in the middle of a
    step. Once it is gone, JAX's runtime ends the others after a while.
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
    """Returns the bits that are set in any process; waits until the devices are idle."""
    if jax.process_count() == 1:
        return flags
    return int(np.bitwise_or.reduce(multihost_utils.process_allgather(np.int32(flags))))


def from_leader(make: Callable[[], bytes]) -> bytes:
    """Returns in all processes the bytes that process 0 makes; `make` is called only there."""
    if jax.process_count() == 1:
        return make()
    content = make() if leads() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    # As 32-bit integers, since the broadcast is a sum over the processes, with zeros from the rest.
    words = np.zeros(-(-size // 4), np.int32)
    if leads():
        words.view(np.uint8)[:size] = np.frombuffer(content, np.uint8)
    return multihost_utils.broadcast_one_to_all(words).tobytes()[:size]


def arrays_from_leader(make: Callable[[], Any], template: Any) -> Any:
    """Returns in all processes the tree of arrays that process 0 makes.

    Args:
      make: called only in process 0.
      template: a tree of arrays of the same structure, shapes and types.
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
