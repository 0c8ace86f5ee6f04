"""Checkpoints: orbax writes them, a digest recognises a damaged one, the one before steps in."""

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from adadfq_jax.digests import digest
from adadfq_jax.errors import CheckpointError

_NEWEST = 2  # kept, besides the healthiest
_HEALTH = "health"


class Checkpoints:
    """The checkpoints of one run, in `workdir/checkpoints`.

    Each holds the arrays of a state and, as JSON, a small record of the run with the digest of
    both.
    """

    def __init__(self, workdir: Path):
        """Opens the folder; nothing is written before the first `save`."""
        self._workdir = workdir
        self._first_save = True
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every save at length
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            (self._workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=_health_of,
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(_NEWEST),
                        policies.BestN(
                            get_metric_fn=_health_of, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
            ),
        )

    def save(
        self, step: int, state: Any, record: dict[str, Any], health: float | None = None
    ) -> None:
        """Starts writing a checkpoint; it appears under its final name once it is whole.

        Kept are the newest two, and the healthiest of those whose health is known.

        Args:
          step: its number; one that exists already is left as it is.
          state: a tree of NumPy arrays.
          record: what else a resumed run must know, as JSON.
          health: the student's score, see `health.py`.
        """
        if step in self._manager.all_steps():
            return
        self._remove_partial()
        arrays = _by_name(state)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays),
                record=ocp.args.JsonSave(record | {"digest": _digest(arrays, record)}),
            ),
            metrics=None if health is None else {_HEALTH: health},
        )

    def healthiest(self) -> int | None:
        """Returns the step of the healthiest student that was kept; None where none is known."""
        self._manager.wait_until_finished()
        known = [
            step for step in self._manager.all_steps() if self._manager.metrics(step) is not None
        ]
        return max(known, key=lambda step: _health_of(self._manager.metrics(step)), default=None)

    def _remove_partial(self) -> None:
        """Removes what a kill during a save left; only a run's owner saves, so it was its own."""
        if self._first_save:
            for folder in (self._workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(folder, ignore_errors=True)
        self._first_save = False

    def restore(
        self, template: Any, set_aside: bool = True, step: int | None = None
    ) -> tuple[int, Any, dict[str, Any]] | None:
        """Reads the newest checkpoint that is whole; passes over damaged ones with a warning.

        Args:
          template: a tree of arrays or shapes, of the saved state's structure.
          set_aside: whether to move damaged ones away; only the run that owns the workdir may.
          step: the only one to consider, if given.

        Returns:
          (step, state, record), or None where there is no checkpoint.

        Raises:
          CheckpointError: there are checkpoints, but none is whole, or not the one asked for.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps(), reverse=True)
        if step is not None:
            if step not in steps:
                raise CheckpointError(
                    f"there is no checkpoint of step {step} in {self._workdir / 'checkpoints'}; "
                    f"there are {', '.join(map(str, sorted(steps))) or 'none'}."
                )
            steps = [step]
        for step in steps:
            try:
                return step, *self._read(step, template)
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                moved = f"it was moved to {self._set_aside(step)}, and " if set_aside else ""
                warnings.warn(
                    f"checkpoint {step} is damaged ({_first_line(error)}); {moved}the one before "
                    "is used.",
                    stacklevel=2,
                )
        if steps:
            moved = f" and is now in {self._workdir / 'damaged'}" if set_aside else ""
            raise CheckpointError(
                f"every checkpoint in {self._workdir / 'checkpoints'} was damaged{moved}: choose "
                "a new workdir to start again."
            )
        return None

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
        aside = self._workdir / "damaged" / str(step)
        aside.parent.mkdir(exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        (self._workdir / "checkpoints" / str(step)).rename(aside)
        self._manager.close()
        self._manager = self._open()
        return aside

    def close(self) -> None:
        """Waits until every checkpoint is on disk."""
        self._manager.close()


def _health_of(metrics: dict[str, float]) -> float:
    return metrics[_HEALTH]


def _digest(arrays: dict[str, np.ndarray], record: dict[str, Any]) -> str:
    text = json.dumps(record, sort_keys=True).encode()
    return digest(arrays | {"record": np.frombuffer(text, np.uint8)})


def _by_name(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by their path, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
