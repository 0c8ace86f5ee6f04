"""Checkpoints, written by orbax; a digest finds a damaged one, and the one before is read."""

import contextlib
import json
import logging
import os
import re
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from adadfq_jax.errors import AdaDFQError, CheckpointError, StorageError
from adadfq_jax.storage.digests import digest
from adadfq_jax.storage.files import absolute, make_folder, move_folder, remove_folder, translated
from adadfq_jax.training.workdir import CHECKPOINTS, DAMAGED

_NEWEST = 2  # how many of the newest checkpoints are kept, besides the healthiest student's

# Folders that orbax may have left unfinished: in Cloud Storage they have no temporary suffix.
_BEGUN = re.compile(r"\d+(\.orbax-checkpoint-tmp.*)?")


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`.

    Each holds the arrays of a state and, as JSON, a small record of the run with the digest of
    both.
    """

    def __init__(self, workdir: Path):
        """Opens the folder `checkpoints` of a workdir, and creates it where it is missing."""
        self._workdir, self._folder = workdir, workdir / CHECKPOINTS
        self._first_save = True
        self._kept = policies.AnyPreservationPolicy(_kept_besides(None))
        # orbax logs every save at length there, and every failure, which it raises as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        _silence_threads()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        folder = absolute(self._folder)
        make_folder(folder)
        return ocp.CheckpointManager(
            folder,
            options=ocp.CheckpointManagerOptions(
                create=False,
                preservation_policy=self._kept,
                # Only one of several processes opens checkpoints, since all have the same state.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=jax.process_index(), active_processes={jax.process_index()}
                ),
            ),
        )

    def save(
        self, step: int, state: Any, record: dict[str, Any], healthiest: int | None = None
    ) -> None:
        """Starts writing a checkpoint; it appears under its final name once it is whole.

        The newest two checkpoints are kept, and the one of the healthiest student.

        Args:
          step: number of the checkpoint; an existing one of that number is left as it is.
          state: a tree of NumPy arrays.
          record: what else a resumed run must know, as JSON.
          healthiest: step of the healthiest student so far, see `evaluation/health.py`.

        Raises:
          CheckpointError: this checkpoint, or the one before it, cannot be written.
          StorageError: Cloud Storage is not reached.
        """
        if step in self._manager.all_steps():
            return
        if self._first_save:
            self._remove_partial()
            self._first_save = False
        self._kept.policies = _kept_besides(healthiest)
        arrays = _by_name(state)
        with self._writing():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(arrays),
                    record=ocp.args.JsonSave(record | {"digest": _digest(arrays, record)}),
                ),
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with translated(f"a checkpoint cannot be written to {self._folder}"):
                yield
        except AdaDFQError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds for a full disk
            # An unfinished checkpoint takes room on a full disk. tensorstore's threads cannot be
            # stopped and may write a little more; the first save of the next run removes that.
            with contextlib.suppress(Exception):
                self._remove_partial()
            raise CheckpointError(
                f"a checkpoint cannot be written to {self._folder} ({_reason(error)}); once it "
                f"can, {self._what_goes_on()}."
            ) from error

    def _what_goes_on(self) -> str:
        whole = [int(entry.name) for entry in self._folder.glob("*") if entry.name.isdecimal()]
        if not whole:
            return "the same command begins anew, for there is none before"
        return f"the same command goes on from step {max(whole)}"

    def _remove_partial(self) -> None:
        """Removes unfinished checkpoints; the caller owns the workdir, so nobody writes them."""
        whole = {str(step) for step in self._manager.all_steps()}
        for entry in self._folder.iterdir() if self._folder.exists() else ():
            if entry.name not in whole and _BEGUN.fullmatch(entry.name):
                remove_folder(entry)

    def restore(
        self, template: Any, set_aside: bool = True, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest whole checkpoint; warns of damaged ones and skips them.

        Args:
          template: a tree of arrays or shapes, of the saved state's structure.
          set_aside: whether to move damaged ones away; only the run that owns the workdir may.
          step: the only step to consider; None for the newest.

        Returns:
          (step, state, record), or None where there is no checkpoint.

        Raises:
          StorageError: Cloud Storage is not reached.
          CheckpointError: every checkpoint is damaged, or that of `step` is damaged or missing.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps(), reverse=True)
        only = step is not None
        if only:
            if step not in steps:
                raise CheckpointError(
                    f"there is no checkpoint of step {step} in {self._folder}; "
                    f"there are {', '.join(map(str, sorted(steps))) or 'none'}."
                )
            steps = [step]
        for step in steps:
            try:
                return step, *self._read_surely(step, template)
            except (StorageError, PermissionError, MemoryError):
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                if only:
                    raise CheckpointError(
                        f"checkpoint {step} in {self._folder} is damaged ({_first_line(error)})."
                    ) from error
                moved = f"it was moved to {self._set_aside(step)}, and " if set_aside else ""
                warnings.warn(
                    f"checkpoint {step} is damaged ({_first_line(error)}); {moved}the one before "
                    "is used.",
                    stacklevel=2,
                )
        if steps:
            moved = (
                f", and is now in {self._workdir / DAMAGED}; the same command begins the run anew"
                if set_aside
                else ""
            )
            raise CheckpointError(f"every checkpoint in {self._folder} was damaged{moved}.")
        return None

    def _read_surely(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        try:
            return self._read(step, template)
        except Exception:
            # A second try, since the network or the machine may have failed once. Listing the
            # folder tells an unreachable one, which is no damage.
            with translated(f"{self._workdir} cannot be read"):
                list(self._folder.iterdir())
            return self._read(step, template)

    def _read(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        shapes = {
            name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in _by_name(template).items()
        }
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes), record=ocp.args.JsonRestore()
            ),
        )
        arrays = {name: np.asarray(array) for name, array in restored["state"].items()}
        record = restored["record"]
        if record.pop("digest") != _digest(arrays, record):
            raise CheckpointError("its content is not what was written")
        leaves = [arrays[name] for name in shapes]
        return jax.tree.unflatten(jax.tree.structure(template), leaves), record

    def _set_aside(self, step: int) -> Path:
        aside = self._workdir / DAMAGED / str(step)
        move_folder(self._folder / str(step), aside)
        self._manager.close()
        self._manager = self._open()
        return aside

    def close(self) -> None:
        """Waits until every checkpoint is on disk.

        Raises:
          CheckpointError, StorageError: as `save`.
        """
        with self._writing():
            self._manager.close()


def _kept_besides(healthiest: int | None) -> list[policies.PreservationPolicy]:
    # Not orbax's BestN, which ranks by a metric that it stores outside the state and the record,
    # where no digest protects it.
    steps = () if healthiest is None else (healthiest,)
    return [policies.LatestN(_NEWEST), policies.CustomSteps(steps)]


def _silence_threads() -> None:
    """Hides tracebacks of orbax's threads; `save` or `close` raises the same errors."""
    before = threading.excepthook
    if getattr(before, "silences_orbax", False):
        return

    def show(told: threading.ExceptHookArgs) -> None:
        frames = traceback.walk_tb(told.exc_traceback)
        modules = (frame.f_globals.get("__name__", "") for frame, _ in frames)
        if not any(module.partition(".")[0] == "orbax" for module in modules):
            before(told)

    show.silences_orbax = True
    threading.excepthook = show


def _digest(arrays: dict[str, np.ndarray], record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True).encode()
    return digest(arrays | {"record": np.frombuffer(text, np.uint8)})


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by their path, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _reason(error: Exception) -> str:
    """Returns the system's message, which tensorstore puts at the end of a long line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(found[1]))
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
