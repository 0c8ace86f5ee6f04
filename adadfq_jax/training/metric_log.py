"""A run's log of metrics: one JSON object a line, each with its step.

On a disk, lines are appended to `metrics.jsonl`. Files in Cloud Storage cannot be appended to, so
there the lines of each minute are written as a new file `metrics/NUMBER.jsonl`.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adadfq_jax.storage.files import is_remote, write_whole
from adadfq_jax.training.workdir import METRICS, METRICS_IN_PARTS, Workdir

_SECONDS_OF_A_PART = 60.0


class MetricLog:
    """A run's log on a disk, open for writing."""

    def __init__(self, workdir: Workdir, step: int):
        """Opens the log at a step; lines of later steps are dropped, since the run repeats them."""
        path = workdir.path / METRICS
        kept = _until(step, _read([path]) if path.exists() else "")
        workdir.write_text(METRICS, kept)
        self._file = open(path, "a")  # noqa: SIM115 (held until close)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one object and flushes it to the disk."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Does nothing, since `write` flushes."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class MetricLogInParts:
    """A run's log in Cloud Storage, open for writing, with the methods of `MetricLog`."""

    def __init__(self, workdir: Workdir, step: int):
        """Opens the log at a step; parts with lines of later steps are rewritten or removed."""
        self._workdir, self._lines, self._number = workdir, [], 0
        workdir.check_owner()
        for path in _parts(workdir.path):
            self._number = int(path.stem) + 1
            text = _read([path])
            kept = _until(step, text)
            if not kept:
                path.unlink()
            elif kept != text:
                write_whole(path, kept.encode())
        self._written = time.monotonic()

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one object, which is stored within a minute or with the next checkpoint."""
        self._lines.append(json.dumps(record) + "\n")
        if time.monotonic() - self._written > _SECONDS_OF_A_PART:
            self.flush()

    def flush(self) -> None:
        """Stores the lines that were appended since the last part."""
        if self._lines:
            name = f"{METRICS_IN_PARTS}/{self._number:06}.jsonl"
            self._workdir.write_text(name, "".join(self._lines))
            self._lines, self._number = [], self._number + 1
        self._written = time.monotonic()

    def close(self) -> None:
        """Stores the lines that are left."""
        self.flush()


Log = MetricLog | MetricLogInParts


def open_log(workdir: Workdir, step: int) -> Log:
    """Opens a run's log at a step; lines of later steps are dropped, since the run repeats them."""
    return (MetricLogInParts if is_remote(workdir.path) else MetricLog)(workdir, step)


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """Reads a run's log in either form; damaged lines are left out.

    Args:
      workdir: the run's folder, in Cloud Storage or on a disk (a copy from Cloud Storage too).

    Returns:
      The objects that have a step, in order.
    """
    whole = workdir / METRICS
    paths = [whole] if whole.exists() else _parts(workdir)
    return [record for _, record in _records(_read(paths))]


def _parts(workdir: Path) -> list[Path]:
    return sorted((workdir / METRICS_IN_PARTS).glob("[0-9]*.jsonl"))


def _read(paths: Iterable[Path]) -> str:
    return "".join(path.read_bytes().decode(errors="replace") for path in paths)


def _records(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yields each line that is a JSON object with a step, and the object."""
    for line in text.splitlines():
        try:
            record = json.loads(line, parse_int=_integer)
        except (ValueError, RecursionError):  # the line that a kill cut short, or a damaged one
            continue
        if isinstance(record, dict) and type(record.get("step")) is int:  # which True is not
            yield line, record


def _integer(digits: str) -> int | float:
    """Reads an integer; one that no float holds, as infinity."""
    return int(digits) if math.isfinite(number := float(digits)) else number


def _until(step: int, text: str) -> str:
    return "".join(line + "\n" for line, record in _records(text) if record["step"] <= step)
