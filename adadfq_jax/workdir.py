"""A run's folder: one owner, one identity, files that are whole or absent."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from adadfq_jax.config import differences, to_json
from adadfq_jax.errors import ConfigError
from adadfq_jax.ownership import own
from adadfq_jax.storage import is_remote, locate, make_folder, translated, write_whole

CONFIG, TEACHER, METRICS, CHECKPOINTS, DAMAGED, SAMPLES, SAMPLES_OVER_TIME, RESULT = (
    "config.json",
    "teacher.safetensors",
    "metrics.jsonl",
    "checkpoints",
    "damaged",
    "samples.png",
    "samples",
    "result.json",
)

# What a run would replace or remove, and must be its own; whose `config.json` comes first of all.
_REPLACED = (TEACHER, METRICS, CHECKPOINTS, DAMAGED, SAMPLES, SAMPLES_OVER_TIME, RESULT)

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
          ConfigError: as `check_identity`; nothing was written.
        """
        self.check_identity(config)
        self.write_text(CONFIG, to_json(config))

    def check_identity(self, config: ml_collections.ConfigDict) -> None:
        """Checks that the folder belongs to this run, or to none; writes nothing.

        Raises:
          ConfigError: the folder holds a run of another identity, whose fields are named, or is no
            run's and holds something that this one would replace.
        """
        if (self.path / SWEEP).exists():
            raise ConfigError(
                f"workdir {str(self.path)!r} holds a sweep; choose another for a single run."
            )
        old = read_json(self.path / CONFIG)
        if old is None:
            found = [name for name in _REPLACED if (self.path / name).exists()]
            if found:
                raise ConfigError(
                    f"workdir {str(self.path)!r} holds no run, but {', '.join(found)}, which a run "
                    "would replace; choose another workdir."
                )
        elif changed := differences(old, config):
            raise ConfigError(
                f"workdir {str(self.path)!r} holds another run ({changed}); choose another "
                "workdir, or the same values."
            )

    def finished_steps(self) -> int:
        """Returns how many steps the run that ended here took; 0 where none ended."""
        result = read_json(self.path / RESULT) or {}
        return result.get("steps", 0)

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
