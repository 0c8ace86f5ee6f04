"""A sweep: the games of a grid, each a run in a folder, trained by any number of processes.

A process takes the next game that no other process has locked. The kernel removes the lock of a
process that ends or is killed (in Cloud Storage, its lease expires), so another process can then
resume that game from its checkpoint. A process that finds no free game waits until the others are
done, in case one of them is killed.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from adadfq_jax.config.identity import differences, to_json
from adadfq_jax.config.resolve import resolve
from adadfq_jax.data.unlabelled import Unlabelled, images_of
from adadfq_jax.devices.machine import share_cores
from adadfq_jax.errors import (
    ConfigError,
    DivergedError,
    StoppedError,
    StorageError,
    WorkdirInUseError,
)
from adadfq_jax.models.network import Teacher
from adadfq_jax.storage.files import (
    is_remote,
    locate,
    make_folder,
    refuse_foreign,
    translated,
    write_whole,
)
from adadfq_jax.storage.ownership import Lock, is_leased
from adadfq_jax.sweeps.grid import Point, plan
from adadfq_jax.sweeps.table import NAMES, is_sweep_table, result_line, table_forms, table_rows
from adadfq_jax.teachers.load import teacher_of
from adadfq_jax.training import exports as kept_exports
from adadfq_jax.training.quantize import quantize
from adadfq_jax.training.result import read_result
from adadfq_jax.training.workdir import (
    CONFIG,
    DIVERGED,
    RESULT,
    SWEEP,
    check_can_be_folder,
    check_run,
    check_sweep,
    read_json,
)

_CLAIM = ".claim"
_SECONDS_BETWEEN_LOOKS = 0.5
_IN_CLOUD_STORAGE = "the sweep in Cloud Storage fails"


def run_sweep(
    config: ml_collections.ConfigDict,
    grid: str | Mapping[str, Sequence[Any]],
    workdir: str | Path,
    *,
    teacher: Teacher | None = None,
    should_stop: Callable[[], int | None] = lambda: None,
    show_progress: bool = False,
) -> dict[str, Any]:
    """Trains every game of a grid that is not finished, and writes the tables.

    Args:
      config: from `default_config` or a file in `configs/`, for the fields that the grid does not
        name.
      grid: such as `bits=w3a3,w4a4;seed=0..4`, see `grid.parse_grid`; or the values by key.
      workdir: the sweep's folder; other processes may work on the same sweep at the same time.
      teacher: a teacher in memory; None reads the one at `config.teacher.path`.
      should_stop: called before the first step of a run and after every dispatch; once it returns
        a signal's number, the sweep stops with a checkpoint.
      show_progress: whether to show a progress bar for each game on stderr.

    Returns:
      The content of `table.json`, see `Sweep.write_tables`.

    Raises:
      ConfigError, TeacherError, DataError: an argument cannot be used.
      StoppedError: `should_stop` returned a signal.
      StorageError: a workdir in Cloud Storage is not reached.
    """
    sweep = Sweep(plan(config, grid), workdir, teacher)
    sweep.play(should_stop, show_progress)
    return sweep.write_tables()


class Sweep:
    """The games of a grid in a folder.

    Attributes:
      path: the folder.
      points: the games.
    """

    @translated(_IN_CLOUD_STORAGE)
    def __init__(
        self, points: Sequence[Point], workdir: str | Path, teacher: Teacher | None = None
    ):
        """Checks the games against the folder's content, and writes only `sweep.json`.

        Args:
          points: the games, from `grid.plan`.
          workdir: the sweep's folder, created where it is missing.
          teacher: a teacher in memory, for all games; None reads those that the games name.

        Raises:
          ConfigError: the folder holds a single run, a game of the same name with other fields, or
            a file that the sweep would replace and no sweep wrote.
          TeacherError: a teacher cannot be used.
        """
        self.path, self.points = locate(workdir), points
        check_can_be_folder(self.path)
        check_sweep(self.path)
        for name in NAMES:
            if (self.path / name).exists() and not is_sweep_table(self.path / name):
                refuse_foreign(self.path / name, "a table of a sweep")
        if read_json(self.path / SWEEP) is None:
            for point in points:
                if (self.path / point.name / CONFIG).exists():
                    raise ConfigError(
                        f"{str(self.path / point.name)!r} holds a run that no sweep began; choose "
                        "another workdir for the sweep."
                    )
        self._teachers: dict[str, Teacher] = {}
        self._read: dict[Any, Unlabelled | None] = {}
        self._given = teacher
        self._configs = {}
        for point in points:
            teacher = self._teacher(point)
            self._configs[point.name] = resolve(point.config, teacher, self._images(point, teacher))
            self._check_kept(point)
        make_folder(self.path)
        games = {point.name: point.values for point in points}
        write_whole(self.path / SWEEP, to_json({"games": games}).encode())

    def _teacher(self, point: Point) -> Teacher:
        if self._given is not None:
            return self._given
        config = point.config
        key = json.dumps([config.teacher.to_dict(), config.data.mean, config.data.std])
        if key not in self._teachers:
            self._teachers[key] = teacher_of(config)
        return self._teachers[key]

    def _images(self, point: Point, teacher: Teacher) -> Unlabelled | None:
        samples = point.config.samples
        key = samples.images, bool(samples.images_share), teacher.digest
        if key not in self._read:
            self._read[key] = images_of(point.config, teacher)
        return self._read[key]

    def _check_kept(self, point: Point) -> None:
        folder = self.path / point.name
        kept = read_json(folder / CONFIG) if folder.is_dir() else None
        changed = kept and differences(kept, self._configs[point.name])
        if changed:
            raise ConfigError(
                f"the sweep in {str(self.path)!r} has a game {point.name} with other fields "
                f"({changed}); choose another workdir, or the same values."
            )
        if folder.exists() and not folder.is_dir():
            raise ConfigError(
                f"{str(folder)!r} is a file, but the game {point.name} needs a folder of this "
                "name; choose another workdir."
            )
        check_run(folder, self._configs[point.name])
        kept_exports.check_exports(folder, self._configs[point.name])

    def is_settled(self, point: Point) -> bool:
        """Tells whether a game is finished or has diverged."""
        folder, config = self.path / point.name, self._configs[point.name]
        steps = (read_json(folder / RESULT) or {}).get("steps", 0)
        return steps >= config.epochs * config.steps_per_epoch or (folder / DIVERGED).exists()

    def unsettled(self) -> list[Point]:
        """Returns the games that are neither finished nor diverged."""
        return [point for point in self.points if not self.is_settled(point)]

    @translated(_IN_CLOUD_STORAGE)
    def play(
        self,
        should_stop: Callable[[], int | None] = lambda: None,
        show_progress: bool = False,
    ) -> None:
        """Trains games until all are settled, and prints a line for each game that ends here.

        Args:
          should_stop: as in `run_sweep`.
          show_progress: whether to show a progress bar for each game on stderr.

        Raises:
          StoppedError: `should_stop` returned a signal.
        """
        waiting = False
        while points := self.unsettled():
            if waiting:
                time.sleep(_SECONDS_BETWEEN_LOOKS * (10 if is_remote(self.path) else 1))
            waiting = True
            if is_remote(self.path):  # so that the processes do not all wait for the first lease
                random.shuffle(points)
            for point in points:
                if stop := should_stop():
                    raise StoppedError(
                        f"stopped by {signal.Signals(stop).name} between two games; run the same "
                        "command to go on.",
                        stop,
                    )
                with self._claim(point) as ours:
                    # Another process may have finished the game since `points` was listed.
                    if ours and not self.is_settled(point):
                        waiting &= not self._play(point, should_stop, show_progress)

    def _play(self, point: Point, should_stop, show_progress: bool) -> bool:
        """Trains a game and prints its result; returns False where another run has its folder."""
        folder = self.path / point.name
        if not show_progress:
            print(f"{point.name}: begins", file=sys.stderr, flush=True)
        try:
            student = quantize(
                self._configs[point.name],
                self._teacher(point),
                folder,
                should_stop=should_stop,
                show_progress=show_progress,
            )
        except WorkdirInUseError:  # of a run that no sweep started
            return False
        except DivergedError as error:
            write_whole(folder / DIVERGED, to_json({"message": str(error)}).encode())
            text = f"diverged; {error}"
        else:
            text = result_line(student.result)
        done = len(self.points) - len(self.unsettled())
        print(f"[{done}/{len(self.points)}] {point.name}: {text}", flush=True)
        return True

    @contextlib.contextmanager
    def _claim(self, point: Point) -> Iterator[bool]:
        """Locks a game for the duration of the context; yields whether that succeeded."""
        folder = self.path / point.name
        if is_remote(folder):  # `quantize` takes the lease
            yield not is_leased(folder)
            return
        make_folder(folder)
        try:
            claim = Lock(folder, _CLAIM)
        except WorkdirInUseError:
            yield False
            return
        try:
            yield True
        finally:
            claim.close()

    @translated(_IN_CLOUD_STORAGE)
    def play_in_processes(
        self,
        command: Sequence[str],
        shares: Sequence[Mapping[str, str]],
        should_stop: Callable[[], int | None],
    ) -> None:
        """Starts processes that work on this sweep, each with a share of the machine, and waits.

        Args:
          command: the command of one process, which calls `play` on this sweep.
          shares: environment variables of each process, from `machine.shares_of_accelerators`.
          should_stop: called twice a second; a signal that it returns is sent to all processes.

        Raises:
          StoppedError: `should_stop` returned a signal.
          ConfigError: the processes have ended, but some games are not settled.
          StorageError: the same, because a process did not reach Cloud Storage.
        """
        processes = []
        for index, share in enumerate(shares):
            with share_cores(index, len(shares)):
                # In another session, so that Ctrl-C reaches them only once, through this process.
                processes.append(
                    subprocess.Popen(command, env=os.environ | share, start_new_session=True)
                )
        stop = None
        try:
            while any(process.poll() is None for process in processes):
                if not stop and (stop := should_stop()):
                    for process in processes:
                        process.send_signal(stop)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            for process in processes:
                process.terminate()  # does nothing to a process that has ended
        if stop:
            raise StoppedError(
                f"stopped by {signal.Signals(stop).name}; run the same command to go on.", stop
            )
        if left := self.unsettled():
            codes = ", ".join(str(process.returncode) for process in processes)
            reached = all(process.returncode != os.EX_TEMPFAIL for process in processes)
            raise (ConfigError if reached else StorageError)(
                f"{len(left)} of {len(self.points)} games are not finished, but their processes "
                f"have ended (exit codes {codes}); run the same command to go on."
            )

    @translated(_IN_CLOUD_STORAGE)
    def write_tables(self) -> dict[str, Any]:
        """Writes table.md, table.csv and table.json, each in one piece.

        Returns:
          The content of `table.json`: `rows`, one for the games that differ only in their seed;
          `diverged`, names of the games that diverged; `outside`, names of games in the folder that
          are not in the grid.
        """
        games = []
        for point in self.points:
            folder = self.path / point.name
            diverged = (folder / DIVERGED).exists()
            games.append((point, None if diverged else read_result(folder)))
        names = {point.name for point in self.points}
        table = {
            "rows": table_rows(games),
            "diverged": [point.name for point, result in games if result is None],
            "outside": sorted(
                file.parent.name
                for file in self.path.glob(f"*/{CONFIG}")
                if file.parent.name not in names
            ),
        }
        for name, text in table_forms(table).items():
            write_whole(self.path / name, text.encode())
        return table
