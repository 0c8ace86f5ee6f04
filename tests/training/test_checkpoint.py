"""Checkpoints: restored bit for bit, damaged, cut short, not to be written."""

import contextlib
import json
import resource
import shutil

import jax
import numpy as np
import pytest

from adadfq_jax.errors import CheckpointError
from adadfq_jax.training.checkpoint import Checkpoints

# From tensorstore's threads, when the first damaged array has ended the reading.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning"
)

RECORD = {"seconds": 1.5, "best": {"top1": 0.1}, "widths": [1e-8, 0.1 + 0.2], "range_change": None}


def make_state(seed):
    random = np.random.default_rng(seed)
    return {
        "step": np.int32(seed),
        "seed": np.uint32(2**32 - 1),
        "params": {
            "kernel": random.normal(size=(3, 3, 16, 16)).astype(np.float32),
            "bias": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        },
        "opt_state": ({"trace": random.normal(size=(64, 64))}, ()),
    }


@pytest.fixture
def opened(tmp_path):
    """Returns a function that opens the run's checkpoints, as a new process would."""
    instances = []

    def open_again():
        for instance in instances:
            instance.close()
        instances.append(Checkpoints(tmp_path))
        return instances[-1]

    yield open_again
    for instance in instances:
        instance.close()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A folder with checkpoints of steps 1, 2 and 3; not to be changed."""
    folder = tmp_path_factory.mktemp("three")
    checkpoints = Checkpoints(folder)
    for step in (1, 2, 3):
        checkpoints.save(step, make_state(step), RECORD | {"seconds": float(step)})
    checkpoints.close()
    return folder


@pytest.fixture
def saved(three, opened, tmp_path):
    """As `opened`, with checkpoints of steps 1, 2 and 3 on disk."""
    shutil.copytree(three, tmp_path, dirs_exist_ok=True)
    return opened


def assert_restored(checkpoints, expected):
    step, state, record = checkpoints.restore(make_state(0))
    assert step == expected
    assert record == RECORD | {"seconds": float(expected)}
    wanted = make_state(expected)
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    for found, array in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_nothing_to_restore(opened):
    assert opened().restore(make_state(0)) is None


def test_round_trip_is_bit_for_bit(saved):
    assert_restored(saved(), 3)


def test_two_newest_are_kept(saved, tmp_path):
    saved()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_the_healthiest_is_kept_too(opened, tmp_path):
    for first, last in ((1, 4), (5, 7)):  # in two processes
        checkpoints = opened()
        for step in range(first, last + 1):
            checkpoints.save(step, make_state(step), RECORD, 3 if step >= 3 else 1)
    opened()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6", "7"]


def test_a_damaged_one_that_was_asked_for_is_called_so(saved, tmp_path):
    saved()
    _flip_bit(tmp_path / "checkpoints" / "2")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"^checkpoint 2 in .* is damaged \("):
        saved().restore(make_state(0), set_aside=False, step=2)
    assert sorted(tmp_path.rglob("*")) == before
    assert_restored(saved(), 3)


def test_a_step_is_saved_once(saved):
    checkpoints = saved()
    checkpoints.save(3, make_state(7), RECORD)
    assert_restored(saved(), 3)


def _flip_bit(folder):
    largest = max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def _truncate(folder):
    largest = max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])


def _empty(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def _lose_state(folder):
    shutil.rmtree(folder / "state")


def _lose_all(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def _change_record(folder):
    path = folder / "record" / "metadata"
    record = json.loads(path.read_text())
    record["best"]["top1"] = 0.9
    path.write_text(json.dumps(record))


DAMAGES = [_flip_bit, _truncate, _empty, _lose_state, _lose_all, _change_record]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_is_set_aside_and_the_one_before_used(saved, tmp_path, damage):
    saved().close()
    damage(tmp_path / "checkpoints" / "3")
    checkpoints = saved()
    with pytest.warns(UserWarning, match="checkpoint 3 is damaged") as warned:
        assert_restored(checkpoints, 2)
    assert str(tmp_path / "damaged" / "3") in str(warned[0].message)
    assert (tmp_path / "damaged" / "3").is_dir()
    assert not (tmp_path / "checkpoints" / "3").exists()

    # The run goes on: the same step is written again, and read by the next process.
    checkpoints.save(3, make_state(3), RECORD | {"seconds": 3.0})
    assert_restored(saved(), 3)


def test_all_damaged(saved, tmp_path):
    saved().close()
    for step in ("2", "3"):
        _flip_bit(tmp_path / "checkpoints" / step)
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(CheckpointError, match=r"every checkpoint .* was damaged.* the run anew"),
    ):
        saved().restore(make_state(0))
    assert saved().restore(make_state(0)) is None
    assert sorted(path.name for path in (tmp_path / "damaged").iterdir()) == ["2", "3"]


def test_a_failure_of_the_machine_is_no_damage(saved, tmp_path, monkeypatch):
    """What can be read the second time is whole, and what may not be read stays where it is."""
    read, failures = Checkpoints._read, [OSError("stale file handle")]

    def fail(self, *args):
        if failures:
            raise failures.pop()
        return read(self, *args)

    monkeypatch.setattr(Checkpoints, "_read", fail)
    assert_restored(saved(), 3)
    failures[:] = [PermissionError(), PermissionError()]
    with pytest.raises(PermissionError):
        saved().restore(make_state(0))
    assert not (tmp_path / "damaged").exists()


@contextlib.contextmanager
def small_files():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written(saved, tmp_path, capfd):
    """As on a full disk: one sentence with the system's reason, and what is there stays."""
    checkpoints = saved()
    told = r"cannot be written to .* \(File too large\); once it can, .* goes on from step 3\."
    with small_files():
        checkpoints.save(4, make_state(4), RECORD)
        with pytest.raises(CheckpointError, match=told) as error:
            checkpoints.close()
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")  # nor what orbax's threads have to say
    again = Checkpoints(tmp_path)
    assert_restored(again, 3)
    again.save(4, make_state(4), RECORD | {"seconds": 4.0})
    again.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    assert_restored(Checkpoints(tmp_path), 4)


def test_the_first_that_cannot_be_written(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with small_files():
        checkpoints.save(4, make_state(4), RECORD)
        with pytest.raises(CheckpointError, match="begins anew, for there is none before"):
            checkpoints.close()
    again = Checkpoints(tmp_path)
    assert again.restore(make_state(0)) is None
    again.save(4, make_state(4), RECORD)
    again.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]


def test_what_a_kill_during_a_save_leaves_is_no_obstacle(saved, tmp_path):
    saved().close()
    folder = tmp_path / "checkpoints"
    for step in ("3", "4"):
        shutil.copytree(folder / "3", folder / f"{step}.orbax-checkpoint-tmp-17")
        _truncate(folder / f"{step}.orbax-checkpoint-tmp-17")
    (folder / "3 before the change").mkdir()
    checkpoints = saved()
    assert_restored(checkpoints, 3)
    checkpoints.save(4, make_state(4), RECORD | {"seconds": 4.0})
    assert_restored(saved(), 4)
    # Not what somebody put there.
    assert sorted(path.name for path in folder.iterdir()) == ["3", "3 before the change", "4"]
