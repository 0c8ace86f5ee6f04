"""A run's folder: it has one owner and one run, and each file in it is whole or absent.

The names of all files that verbs write into the folder of a run or of a sweep are here. A file of
such a name that no verb wrote is refused before anything is computed.
"""

import json
import os
from pathlib import Path
from typing import Any

import ml_collections

from adadfq_jax.config.fields import EXPORT_FORMATS
from adadfq_jax.config.identity import differences, to_json
from adadfq_jax.errors import ConfigError
from adadfq_jax.models import pictures
from adadfq_jax.storage.files import (
    is_remote,
    locate,
    make_folder,
    refuse_foreign,
    translated,
    write_whole,
)
from adadfq_jax.storage.ownership import own

CONFIG, TEACHER, METRICS, METRICS_IN_PARTS, CHECKPOINTS, DAMAGED = (
    "config.json",
    "teacher.safetensors",
    "metrics.jsonl",
    "metrics",
    "checkpoints",
    "damaged",
)
SAMPLES, SAMPLES_OVER_TIME, RESULT, DIVERGED, ALLOCATION = (
    "samples.png",
    "samples",
    "result.json",
    "diverged.json",
    "allocation.json",
)
STUDENTS = {name: f"student{suffixes[0]}" for name, suffixes in EXPORT_FORMATS.items()}
REPORT, FIGURES, EVENTS = "report.html", "report", "tensorboard"

# A folder that holds this file is a sweep's, and contains the folders of its runs.
SWEEP = "sweep.json"
TABLE, TABLE_FOR_PEOPLE, TABLE_FOR_SPREADSHEETS = "table.json", "table.md", "table.csv"

# What the verbs write once `config.json` marks a folder as a run's, or `sweep.json` as a sweep's.
_OF_A_RUN = {
    TEACHER,
    METRICS,
    METRICS_IN_PARTS,
    CHECKPOINTS,
    DAMAGED,
    SAMPLES,
    SAMPLES_OVER_TIME,
    RESULT,
    DIVERGED,
    ALLOCATION,
    *STUDENTS.values(),
    REPORT,
    FIGURES,
    EVENTS,
}
_OF_A_SWEEP = {TABLE, TABLE_FOR_PEOPLE, TABLE_FOR_SPREADSHEETS, REPORT, FIGURES}


class Workdir:
    """The folder of one run, owned while it is open.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: str | Path):
        """Creates the folder where it is missing, and becomes its owner.

        Args:
          path: the folder, on a disk or `gs://BUCKET/FOLDER`.

        Raises:
          ConfigError: the path is a file or cannot be written.
          WorkdirInUseError: another process owns the folder.
          StorageError: Cloud Storage is not reached.
        """
        self.path = locate(path)
        if is_remote(self.path):
            with translated(f"workdir {str(path)!r} cannot be written"):
                self._ownership = own(self.path)
            return
        check_can_be_folder(self.path)
        try:
            make_folder(self.path)
            self._ownership = own(self.path)
        except OSError as error:
            raise ConfigError(
                f"workdir {str(path)!r} cannot be written: {error.strerror}."
            ) from error

    def close(self) -> None:
        """Ends the ownership, so that another process can take the folder."""
        self._ownership.close()

    def check_owner(self) -> None:
        """Checks that this process still owns the folder; called before every write.

        Raises:
          StorageError: the lease of a folder in Cloud Storage ran out.
        """
        self._ownership.check()

    def claim(self, config: ml_collections.ConfigDict) -> None:
        """Writes a run's configuration, if the folder belongs to the same run or to none.

        Raises:
          ConfigError: as `check_run`; nothing was written.
        """
        check_run(self.path, config)
        self.write_text(CONFIG, to_json(config))

    def write_text(self, name: str, text: str) -> None:
        """Writes a file in one piece, encoded as UTF-8.

        Args:
          name: the file's path below the folder.
          text: the content.

        Raises:
          StorageError: as `check_owner`.
        """
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file in one piece.

        Args:
          name: the file's path below the folder.
          content: the content.

        Raises:
          StorageError: as `check_owner`.
        """
        self.check_owner()
        path = self.path / name
        make_folder(path.parent)
        write_whole(path, content)


def check_run(path: Path, config: ml_collections.ConfigDict) -> None:
    """Checks that a folder holds this run, or is free for it; writes nothing.

    Args:
      path: the folder, which need not exist.
      config: the run's configuration.

    Raises:
      ConfigError: the folder holds another run (the fields that differ are named), or a file that
        this run would replace and no run wrote; or it is a file.
    """
    check_can_be_folder(path)
    there = _names_in(path)
    if SWEEP in there:
        raise ConfigError(f"workdir {str(path)!r} holds a sweep; choose another for a single run.")
    old = read_json(path / CONFIG)
    if old is None:
        _refuse_unowned(path, there & _OF_A_RUN, "run")
        return
    if not {"teacher", "quant", "game"} <= set(old):
        refuse_foreign(path / CONFIG, "the configuration of a run")
    if changed := differences(old, config):
        raise ConfigError(
            f"workdir {str(path)!r} holds another run ({changed}); choose another "
            "workdir, or the same values."
        )
    result = read_json(path / RESULT)
    if result is not None and not isinstance(result.get("steps"), int):
        refuse_foreign(path / RESULT, "a result of a run")
    if SAMPLES in there and not pictures.is_own(path / SAMPLES):
        refuse_foreign(path / SAMPLES, "a picture of a run")


def check_sweep(path: Path) -> None:
    """Checks that a folder holds a sweep, or is free for one; writes nothing.

    Whether a sweep wrote the tables in it, `table.is_sweep_table` tells.

    Args:
      path: the folder, which need not exist.

    Raises:
      ConfigError: the folder holds a single run, or a file that a sweep would replace and no sweep
        wrote.
    """
    there = _names_in(path)
    if CONFIG in there:
        raise ConfigError(
            f"workdir {str(path)!r} holds a single run; choose another for the sweep."
        )
    old = read_json(path / SWEEP)
    if old is None:
        _refuse_unowned(path, there & _OF_A_SWEEP, "sweep")
    elif not isinstance(old.get("games"), dict):
        refuse_foreign(path / SWEEP, "a list of a sweep's games")


def check_can_be_folder(path: Path) -> None:
    """Checks that a folder is there or can be made: neither it nor one above it is something else.

    Args:
      path: the folder.

    Raises:
      ConfigError: one is a file, or a link to nothing.
    """
    if is_remote(path):
        return
    there = next((place for place in (path, *path.parents) if os.path.lexists(place)), None)
    if there is not None and not there.is_dir():
        raise ConfigError(f"workdir {str(path)!r} is a file; name a folder.")


def _refuse_unowned(path: Path, found: set[str], owner: str) -> None:
    """Raises ConfigError where a folder of no run or sweep holds files that one would replace."""
    if found:
        raise ConfigError(
            f"workdir {str(path)!r} holds no {owner}, but {', '.join(sorted(found))}, which a "
            f"{owner} or its report would replace; choose another workdir."
        )


def _names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()} if path.is_dir() else set()


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns a JSON file's object, or None where there is no such file.

    Raises:
      ConfigError: the file does not hold a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError as error:
        raise ConfigError(f"{str(path)!r} must be a file of adadfq, but is a folder.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{str(path)!r} is damaged, or was not written by adadfq: {error}."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{str(path)!r} is damaged, or was not written by adadfq: it holds no JSON object."
        )
    return content
