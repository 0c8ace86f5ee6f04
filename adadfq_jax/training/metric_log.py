"""What a run logs: one JSON object a line, each with its step.

On a disk lines are appended to `metrics.jsonl`. In Cloud Storage, where nothing can be appended,
they go out by the minute, as `metrics/NUMBER.jsonl`, each part written once.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adadfq_jax.storage.files import is_remote, write_whole
from adadfq_jax.training.workdir import METRICS, METRICS_IN_PARTS, Workdir

_SECONDS_OF_A_PART = 60.0


class MetricLog:
    """A run's log, open to be written."""

    def __init__(self, workdir: Workdir, step: int):
        """Opens the log to go on after a step; lines of later steps, since lost, are dropped."""
        path = workdir.path / METRICS
        kept = _until(step, _read([path]) if path.exists() else "")
        workdir.write_text(METRICS, kept)
        self._file = open(path, "a")  # noqa: SIM115 (held until close)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one object, at once on disk."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Makes sure that what was appended is there: it is."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class MetricLogInParts:
    """As `MetricLog`, in Cloud Storage."""

    def __init__(self, workdir: Workdir, step: int):
        """As `MetricLog`; a part that holds lost lines is written anew, or removed."""
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
        """Appends one object; it is there after a minute or, before, the next checkpoint."""
        self._lines.append(json.dumps(record) + "\n")
        if time.monotonic() - self._written > _SECONDS_OF_A_PART:
            self.flush()

    def flush(self) -> None:
        """Makes sure that what was appended is there."""
        if self._lines:
            name = f"{METRICS_IN_PARTS}/{self._number:06}.jsonl"
            self._workdir.write_text(name, "".join(self._lines))
            self._lines, self._number = [], self._number + 1
        self._written = time.monotonic()

    def close(self) -> None:
        """Writes what is left."""
        self.flush()


Log = MetricLog | MetricLogInParts


def open_log(workdir: Workdir, step: int) -> Log:
    """Opens a run's log to go on after a step; lines of later steps, since lost, are dropped."""
    return (MetricLogInParts if is_remote(workdir.path) else MetricLog)(workdir, step)


def read_log(workdir: Path) -> list[dict[str, Any]]:
    """Reads a run's log, of a disk, Cloud Storage or a copy from there; damaged lines are left out.

    Returns:
      The objects that have a step.
    """
    whole = workdir / METRICS
    paths = [whole] if whole.exists() else _parts(workdir)
    return [record for _, record in _records(_read(paths))]


def _parts(workdir: Path) -> list[Path]:
    return sorted((workdir / METRICS_IN_PARTS).glob("[0-9]*.jsonl"))


def _read(paths: Iterable[Path]) -> str:
    return "".join(path.read_bytes().decode(errors="replace") for path in paths)


def _records(text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yields each whole line with what it says."""
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the line that a kill cut short
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            yield line, record


def _until(step: int, text: str) -> str:
    return "".join(line + "\n" for line, record in _records(text) if record["step"] <= step)
