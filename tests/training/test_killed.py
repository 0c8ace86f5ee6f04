"""A game that is killed again and again, at any moment, ends as the one that never was."""

import json
import multiprocessing
import random
import sys
import time

import numpy as np
import pytest

from adadfq_jax.models.network import flatten
from adadfq_jax.teachers.load import load_teacher, save_teacher
from adadfq_jax.training import quantize
from adadfq_jax.training.student import load_state
from tests.conftest import make_small_config, make_teacher

KILLS, OF_THEM_WHILE_SAVING = 100, 30
STEPS = 1000
TEMPORARY = "*.orbax-checkpoint-tmp*"


def play(workdir, teacher, said):
    """What is killed; by a process that has imported everything but asked JAX for no device."""
    sys.stderr = open(said, "w", buffering=1)  # noqa: SIM115 (until it is killed)
    config = make_small_config()
    config.steps_per_epoch, config.epochs = STEPS // 10, 10
    config.evaluation.every_epochs = 10
    config.checkpoint.every_steps = 1
    quantize.quantize(config, load_teacher(teacher), workdir)


def whole(workdir):
    folder = workdir / "checkpoints"
    return max((int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()), default=0)


@pytest.mark.kills
def test_a_hundred_kills_cost_nothing_but_time(tmp_path):
    """Some while a process starts, some while it plays, some while a checkpoint is being written.

    The game goes on by 12 steps or less between two kills, so that a machine of any speed plays it
    to a like step.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["adadfq_jax.training.quantize", "tests.training.test_killed"])
    teacher, said = tmp_path / "teacher.safetensors", tmp_path / "said"
    save_teacher(make_teacher(), teacher)

    def start(workdir):
        process = context.Process(target=play, args=(workdir, teacher, said))
        process.start()
        return process

    undisturbed = start(tmp_path / "undisturbed")
    undisturbed.join()
    assert undisturbed.exitcode == 0, said.read_text()

    chance = random.Random(0)
    workdir = tmp_path / "killed"
    saving, lost, early = 0, 0, 0
    start_up = 0.0  # to the first save, measured again and again

    def being_saved():
        return {path.name for path in (workdir / "checkpoints").glob(TEMPORARY)}

    for kill in range(KILLS):
        newest, left_over = whole(workdir), being_saved()
        said.unlink(missing_ok=True)
        began = time.monotonic()
        process = start(workdir)
        if kill >= OF_THEM_WHILE_SAVING and kill % 2:
            time.sleep(chance.uniform(0, start_up))
        else:
            # Not the first save that is seen, so that the game goes on.
            seen = set(left_over)
            for number in range(chance.randint(2, 12)):
                while being_saved() <= seen:
                    assert process.is_alive(), said.read_text()
                    time.sleep(0.001)
                seen |= being_saved()
                if number == 0:
                    start_up = time.monotonic() - began
            if kill >= OF_THEM_WHILE_SAVING:
                time.sleep(chance.uniform(0, 0.3))
        assert process.is_alive(), said.read_text()
        process.kill()
        process.join()
        assert process.exitcode == -9
        saving += not being_saved() <= left_over
        text = said.read_text() if said.exists() else ""
        if "resumed at step" not in text:
            early += 1
        elif newest:
            lost += f"resumed at step {newest} " not in text
    reached = whole(workdir)
    process = start(workdir)
    process.join()
    assert process.exitcode == 0, said.read_text()
    print(
        f"{KILLS} kills, {saving} during a save, {early} before the game went on, "
        f"{lost} with a saved step lost; they ended at step {reached} of {STEPS}"
    )
    assert saving >= 20
    assert lost == 0
    assert 0 < reached < STEPS
    expected, got = (load_state(tmp_path / name)[1] for name in ("undisturbed", "killed"))
    for part in ("generator", "student"):
        arrays = flatten({"params": getattr(got, part).params})
        for name, array in flatten({"params": getattr(expected, part).params}).items():
            np.testing.assert_array_equal(arrays[name], array, err_msg=name)
    lines, others = (
        [
            {k: v for k, v in json.loads(line).items() if k != "steps_per_second"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("undisturbed", "killed")
    )
    assert others == lines
    assert not list((workdir / "checkpoints").glob(TEMPORARY))
