"""A run's folder: one owner, one identity, files that are whole or absent.

Also the names of all that verbs write into the folder of a run or of a sweep. What lies there under
such a name, and was not written by a verb, is refused before anything is computed.
"""

import json
from pathlib import Path
from typing import Any

import ml_collections

from adadfq_jax.config.fields import EXPORT_FORMATS
from adadfq_jax.config.identity import differences, to_json
from adadfq_jax.errors import ConfigError
from adadfq_jax.storage.files import (
    is_remote,
    locate,
    make_folder,
    refuse_foreign,
    translated,
    write_whole,
)
from adadfq_jax.storage.ownership import own
from adadfq_jax.training import pictures

CONFIG, TEACHER, METRICS, METRICS_IN_PARTS, CHECKPOINTS, DAMAGED = (
    "config.json",
    "teacher.safetensors",
    "metrics.jsonl",
    "metrics",
    "checkpoints",
    "damaged",
)
SAMPLES, SAMPLES_OVER_TIME, RESULT, DIVERGED = (
    "samples.png",
    "samples",
    "result.json",
    "diverged.json",
)
STUDENTS = {name: f"student{suffixes[0]}" for name, suffixes in EXPORT_FORMATS.items()}
REPORT, FIGURES, EVENTS = "report.html", "report", "tensorboard"

# What tells a sweep's folder, which holds the folders of its runs, from a run's.
SWEEP = "sweep.json"
TABLE, TABLE_FOR_PEOPLE, TABLE_FOR_SPREADSHEETS = "table.json", "table.md", "table.csv"

# What the verbs write, all of it after the file that tells whose the folder is: `config.json` of a
# run, `sweep.json` of a sweep.
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
        """Creates the folder where it is missing, and takes it.

        Args:
          path: where the run's files go, on a disk or `gs://BUCKET/FOLDER`.

        Raises:
          ConfigError: it is a file or cannot be written.
          WorkdirInUseError: another process owns it.
          StorageError: Cloud Storage is not reached.
        """
        self.path = locate(path)
        if is_remote(self.path):
            with translated(f"workdir {str(path)!r} cannot be written"):
                self._ownership = own(self.path)
            return
        try:
            make_folder(self.path)
            self._ownership = own(self.path)
        except (FileExistsError, NotADirectoryError) as error:
            raise ConfigError(f"workdir {str(path)!r} is a file; name a folder.") from error
        except OSError as error:
            raise ConfigError(
                f"workdir {str(path)!r} cannot be written: {error.strerror}."
            ) from error

    def close(self) -> None:
        """Gives the folder back."""
        self._ownership.close()

    def check_owner(self) -> None:
        """Checks that the folder is still ours, before something is written into it.

        Raises:
          StorageError: its lease ran out, in Cloud Storage.
        """
        self._ownership.check()

    def claim(self, config: ml_collections.ConfigDict) -> None:
        """Writes a run's configuration, where the folder belongs to the same run or to none.

        Raises:
          ConfigError: as `check_run`; nothing was written.
        """
        check_run(self.path, config)
        self.write_text(CONFIG, to_json(config))

    def write_text(self, name: str, text: str) -> None:
        """Writes a file in one piece."""
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """As `write_text`, for bytes.

        Raises:
          StorageError: as `check_owner`.
        """
        self.check_owner()
        path = self.path / name
        make_folder(path.parent)
        write_whole(path, content)


def check_run(path: Path, config: ml_collections.ConfigDict) -> None:
    """Checks that a folder belongs to this run, or to none and can become its own; writes nothing.

    Args:
      path: the folder, which need not exist.
      config: the run's configuration.

    Raises:
      ConfigError: the folder holds a run of another identity, whose fields are named, or something
        that this one would replace and no run wrote.
    """
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
    """Checks that a folder belongs to a sweep, or to none and can become one's; writes nothing.

    The tables of a sweep are for `table.is_sweep_table` to tell.

    Args:
      path: the folder, which need not exist.

    Raises:
      ConfigError: it holds a single run, or something that a sweep would replace and none wrote.
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


def _refuse_unowned(path: Path, found: set[str], owner: str) -> None:
    """Raises ConfigError where a folder without an owner holds what one would replace."""
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
        raise ConfigError(f"{str(path)!r} is a folder, and should be a file of adadfq.") from error
    except ValueError as error:
        raise ConfigError(
            f"{str(path)!r} is damaged, or was not written by adadfq: {error}."
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{str(path)!r} is damaged, or was not written by adadfq: it holds no JSON object."
        )
    return content
