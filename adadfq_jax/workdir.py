"""A run's folder: one owner, one identity, files that are whole or absent."""

import fcntl
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from adadfq_jax.config import differences, to_json
from adadfq_jax.errors import ConfigError, WorkdirInUseError

CONFIG, TEACHER, METRICS, SAMPLES, SAMPLES_OVER_TIME, RESULT = (
    "config.json",
    "teacher.safetensors",
    "metrics.jsonl",
    "samples.png",
    "samples",
    "result.json",
)

# What tells a sweep's folder, which holds the folders of its runs, from a run's.
SWEEP = "sweep.json"


class Workdir:
    """The folder of one run, owned while it is open.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: str | Path):
        """Creates the folder where it is missing, and takes it.

        Args:
          path: where the run's files go.

        Raises:
          ConfigError: it is a file or cannot be written.
          WorkdirInUseError: another process owns it.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The kernel drops a lock with its owner, so that a killed run leaves none behind.
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115 (held until close)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"workdir {str(path)!r} is a file; name a folder.") from error
        except OSError as error:
            raise ConfigError(
                f"workdir {str(path)!r} cannot be written: {error.strerror}."
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise WorkdirInUseError(
                f"workdir {str(path)!r} is in use by another run; wait for it or choose another."
            ) from error

    def close(self) -> None:
        """Gives the folder back."""
        self._lock.close()

    def claim(self, config: ml_collections.ConfigDict) -> None:
        """Writes a run's configuration, where the folder is empty or belongs to the same run.

        Raises:
          ConfigError: as `check_identity`; nothing was written.
        """
        self.check_identity(config)
        self.write_text(CONFIG, to_json(config))

    def check_identity(self, config: ml_collections.ConfigDict) -> None:
        """Checks that the folder is empty or belongs to this run; writes nothing.

        Raises:
          ConfigError: the folder holds a run of another identity; names the fields.
        """
        if (self.path / SWEEP).exists():
            raise ConfigError(
                f"workdir {str(self.path)!r} holds a sweep; choose another for a single run."
            )
        old = read_json(self.path / CONFIG)
        changed = old is not None and differences(old, config)
        if changed:
            raise ConfigError(
                f"workdir {str(self.path)!r} holds another run ({changed}); choose another "
                "workdir, or the same values."
            )

    def finished_steps(self) -> int:
        """Returns how many steps the run that ended here took; 0 where none ended."""
        result = read_json(self.path / RESULT) or {}
        return result.get("steps", 0)

    def write_text(self, name: str, text: str) -> None:
        """Writes a file in one piece: under another name first, then renamed."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """As `write_text`, for bytes."""
        write_whole(self.path / name, content)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file in one piece, also where other processes write it at the same time."""
    owner = f"{socket.gethostname()}-{os.getpid()}"
    partial = path.with_name(f".{path.name}.{owner}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns a JSON file's object, or None where there is no such file.

    Raises:
      ConfigError: the file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{str(path)!r} is damaged: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{str(path)!r} is damaged: it holds no JSON object.")
    return content


class MetricLog:
    """`metrics.jsonl`: one JSON object a line, each with its step."""

    def __init__(self, workdir: Workdir, step: int):
        """Opens the log to go on after a step; lines of later steps, since lost, are dropped."""
        path = workdir.path / METRICS
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):  # the line that a kill cut short
                    continue
        workdir.write_text(METRICS, "".join(kept))
        self._file = open(path, "a")  # noqa: SIM115 (held until close)

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one object, at once on disk."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
