"""Workdirs in Cloud Storage, against an emulator of it that refuses to append and to rename."""

import json
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from gcsfs.retry import HttpError

from adadfq_jax.errors import (
    CheckpointError,
    ConfigError,
    StoppedError,
    StorageError,
    TeacherError,
    WorkdirInUseError,
)
from adadfq_jax.models.network import flatten
from adadfq_jax.reporting import write
from adadfq_jax.storage import files, ownership
from adadfq_jax.sweeps import sweep
from adadfq_jax.teachers.load import load_teacher, save_teacher
from adadfq_jax.training import metric_log
from adadfq_jax.training.metric_log import open_log, read_log
from adadfq_jax.training.quantize import quantize
from adadfq_jax.training.student import load_state, load_student
from adadfq_jax.training.workdir import Workdir
from tests import ROOT
from tests.cloud_storage import outage, running
from tests.conftest import make_small_config, make_teacher
from tests.sweeps.test_sweep import played  # noqa: F401 (a fixture)

pytestmark = [
    # From tensorstore's threads, when the first damaged array has ended the reading.
    pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning"),
    # gcsfs gives aiohttp more at once than it likes.
    pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning"),
]

TEACHER = make_teacher()


@pytest.fixture(scope="module")
def cloud():
    """The bucket of an emulator of Cloud Storage."""
    with running() as bucket:
        yield bucket
    assert not Path("gs:").exists()  # what pathlib makes of a path in Cloud Storage


@pytest.fixture
def folder(cloud, request):
    return f"{cloud}/{request.node.name.replace('[', '-').replace(']', '')}"


def names(folder):
    root = files.locate(folder)
    return sorted(str(path.relative_to(root)) for path in files.files_in(root))


def test_a_game_is_that_of_a_disk(folder, tmp_path, monkeypatch):
    """Stopped, resumed and finished; players bit for bit, metrics, pictures, result, export."""
    monkeypatch.setattr(metric_log, "_SECONDS_OF_A_PART", 0.0)
    config = make_small_config()
    config.checkpoint.every_steps = 6
    config.export = "integers"
    asked = []

    def should_stop():
        asked.append(None)
        return 15 if len(asked) == 9 else None  # twice before the first step, and after each

    with pytest.raises(StoppedError, match=rf"with a checkpoint in {folder}"):
        quantize(config, TEACHER, folder, should_stop=should_stop, show_progress=False)
    assert not ownership.is_leased(files.locate(folder))
    quantize(config, TEACHER, folder, show_progress=False)
    quantize(config, TEACHER, tmp_path, show_progress=False)
    for part in ("generator", "student"):
        got, expected = (
            flatten({"params": getattr(load_state(where)[1], part).params})
            for where in (folder, tmp_path)
        )
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array, err_msg=name)
    lines, others = (
        [{k: v for k, v in line.items() if k != "steps_per_second"} for line in read_log(where)]
        for where in (files.locate(folder), tmp_path)
    )
    assert lines == others
    found = names(folder)
    local = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    differ = {name for name in local ^ set(found) if not name.startswith("checkpoints/")}
    parts = {name for name in found if name.startswith("metrics/")}
    leases = {name for name in found if name.startswith(".lease/")}
    assert len(leases) == 1
    assert differ == parts | leases | {"metrics.jsonl", ".lock"}
    assert len(parts) > 12
    assert load_student(folder).result.steps == 12
    # Read again, it is complete.
    said = quantize(config, TEACHER, folder, show_progress=False)
    assert said.result.steps == 12


def save_two(folder):
    config = make_small_config()
    config.checkpoint.every_steps = 3

    def should_stop(asked=[]):  # noqa: B006
        asked.append(None)
        return 15 if len(asked) == 8 else None

    with pytest.raises(StoppedError):
        quantize(config, TEACHER, folder, should_stop=should_stop, show_progress=False)
    return config


def test_damaged_and_partial_checkpoints(folder):
    """A damaged one is moved away, file by file; one that a kill cut short is no obstacle."""
    config = save_two(folder)
    root = files.locate(folder)
    assert sorted(path.name for path in (root / "checkpoints").iterdir()) == ["3", "6"]
    newest = root / "checkpoints" / "6"
    # As of a save that was killed at step 9: all but the last word.
    for file in list(files.files_in(newest)):
        if file.name != "commit_success.txt":
            target = root / "checkpoints" / "9" / file.relative_to(newest)
            target.write_bytes(file.read_bytes())
    largest = max((newest / "state" / "d").iterdir(), key=lambda path: path.stat().length)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.warns(UserWarning, match=r"checkpoint 6 is damaged .* moved to gs://.*/damaged/6"):
        quantize(config, TEACHER, folder, show_progress=False)
    assert any(name.startswith("damaged/6/state") for name in names(folder))
    assert load_student(folder).result.steps == 12


def test_metrics_in_parts(folder):
    workdir = Workdir(folder)
    log = open_log(workdir, 0)
    for step in range(1, 6):
        log.write({"step": step})
        if step in (2, 4):
            log.flush()
    assert names(f"{folder}/metrics") == ["000000.jsonl", "000001.jsonl"]
    log.close()
    log = open_log(workdir, 3)  # the second part is cut, the third removed
    log.write({"step": 4, "again": True})
    log.close()
    workdir.close()
    read = read_log(workdir.path)
    assert read == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


@pytest.fixture
def short_leases(monkeypatch):
    monkeypatch.setattr(ownership, "_SECONDS_OF_MARGIN", 0.2)
    monkeypatch.setattr(ownership, "_SECONDS_OF_LEASE", 2.0)


# ---- One owner ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_leases")
def test_a_living_owner_is_seen(folder):
    owner = Workdir(folder)
    try:
        with pytest.raises(WorkdirInUseError, match=r"in use by another run \(.+-\d+-"):
            Workdir(folder)
        assert ownership.is_leased(owner.path)
        time.sleep(2.5)  # longer than a lease: it was renewed
        assert ownership.is_leased(owner.path)
        owner.check_owner()
    finally:
        owner.close()
    assert not ownership.is_leased(owner.path)
    Workdir(folder).close()


def lease(folder, seconds, number=1):
    text = json.dumps({"owner": "gone", "until": time.time() + seconds})
    (files.locate(folder) / ".lease" / f"{number:06}").write_text(text)


def test_the_lease_of_one_killed_runs_out(folder):
    lease(folder, 1.5)
    began = time.monotonic()
    workdir = Workdir(folder)
    assert time.monotonic() - began > 1
    workdir.close()
    assert names(folder) == [".lease/000002"]


def test_of_several_at_the_same_moment_one_has_it(folder):
    lease(folder, -1)
    taken, refused, together = [], [], threading.Barrier(4)

    def take():
        together.wait()
        try:
            taken.append(Workdir(folder))
        except WorkdirInUseError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 3)
    taken[0].close()


@pytest.mark.usefixtures("short_leases")
def test_who_has_lost_it_writes_nothing(folder, monkeypatch):
    """As after a pause of the whole machine, during which another run has taken it."""
    workdir = Workdir(folder)
    later = time.time() + 3
    monkeypatch.setattr(ownership.time, "time", lambda: later)
    with pytest.raises(StorageError, match=r"the lease of workdir 'gs://.*' ran out"):
        workdir.write_text("result.json", "{}")
    workdir.close()
    assert names(folder) == [".lease/000001"]
    said = json.loads((workdir.path / ".lease" / "000001").read_text())
    assert said["owner"] != "nobody"  # not given back, as it is no longer ours


def test_what_is_no_lease(folder):
    (files.locate(folder) / ".lease" / "000001").write_text("[]")
    with pytest.raises(ConfigError, match=r"'gs://.*/.lease/000001' is no lease; remove it"):
        Workdir(folder)


def test_where_it_is_not_reached_a_game_ends_and_goes_on_later(folder, monkeypatch):
    """What was saved stays, and the metrics of what was saved."""
    config = make_small_config()
    config.checkpoint.every_steps = 6
    asked = []

    def should_stop():
        asked.append(None)
        if len(asked) == 12:
            time.sleep(1)  # orbax waits for minutes for a save that has begun
            outage.set()

    try:
        with pytest.raises(StorageError, match=rf"{folder}.* (fails|ran out): .*; run the same"):
            quantize(config, TEACHER, folder, should_stop=should_stop, show_progress=False)
        with pytest.raises(StorageError, match=r"cannot be read: .*it fails"):
            quantize(config, TEACHER, folder, show_progress=False)
    finally:
        outage.clear()
    # Later than the lease that could not be given back.
    clock = types.SimpleNamespace(time=lambda: time.time() + 100, sleep=time.sleep)
    monkeypatch.setattr(ownership, "time", clock)
    student = quantize(config, TEACHER, folder, show_progress=False)
    assert student.result.steps == 12
    steps = [line["step"] for line in read_log(files.locate(folder)) if "l_g" in line]
    assert steps == list(range(1, 13))


def test_where_it_is_not_reached_a_sweep_ends(folder, monkeypatch):
    """While it waits for a game that another process plays."""
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_LOOKS", 0.05)
    owner = Workdir(f"{folder}/seed0")
    try:
        with pytest.raises(StorageError, match=r"the sweep in Cloud Storage fails: .*; run the"):
            sweep.run_sweep(
                make_small_config(),
                "seed=0",
                folder,
                teacher=TEACHER,
                should_stop=lambda: outage.set(),
            )
    finally:
        outage.clear()
    owner.close()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("3 is no number")]
)
def test_what_is_no_error_of_cloud_storage_stays_as_it_is(error):
    with pytest.raises(type(error), match=str(error.args[-1])), files.translated("it fails"):
        raise error


@pytest.mark.parametrize("error", [HttpError({"code": 503}), OSError("gs://a/b is gone")])
def test_what_is_one_of_cloud_storage(error):
    with pytest.raises(StorageError, match="it fails: "), files.translated("it fails"):
        raise error


@pytest.mark.usefixtures("played")
def test_a_sweep_passes_over_what_is_leased(folder, monkeypatch, capfd):
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_LOOKS", 0.05)
    owner = Workdir(f"{folder}/seed0")
    looks = []

    def should_stop():
        looks.append(capfd.readouterr().out)
        if any("seed1" in look for look in looks):
            owner.close()

    table = sweep.run_sweep(
        make_small_config(), "seed=0..1", folder, teacher=TEACHER, should_stop=should_stop
    )
    assert table["rows"][0]["games"] == 2
    assert "[1/2] seed1" in "".join(looks)
    assert {"sweep.json", "table.md", "seed0/result.json"} <= set(names(folder))


# ---- What is not a workdir ----------------------------------------------------------------------


def test_a_teacher_from_there(folder, tmp_path):
    save_teacher(TEACHER, f"{folder}/teacher.safetensors")
    assert load_teacher(f"{folder}/teacher.safetensors").digest == TEACHER.digest
    with pytest.raises(TeacherError, match=r"there is no teacher file 'gs://.*other.safetensors'"):
        load_teacher(f"{folder}/other.safetensors")


def test_a_report_is_made_of_a_copy(folder):
    with pytest.raises(ConfigError, match=rf"gcloud storage cp -r {folder} \."):
        write.write_report(folder)


def test_no_run_is_there(folder):
    with pytest.raises(CheckpointError, match=r"'gs://.*' holds no run"):
        load_student(folder)


@pytest.mark.parametrize("path", ["s3://bucket/run", Path("gs://bucket/run"), "file:/run"])
def test_another_storage(path):
    with pytest.raises(ConfigError, match=r"must be on a disk or in Cloud Storage"):
        Workdir(path)


@pytest.mark.parametrize(
    "argv",
    [
        ["sample", "--workdir=x", "--count=1", "--output=gs://bucket/images.npz"],
        ["export", "--workdir=x", "--output=gs://bucket/student.onnx"],
        ["evaluate", "--model=gs://bucket/student.onnx", "--source=npz", "--path=x.npz"],
    ],
)
def test_what_lies_on_a_disk_alone(cloud, argv, sentence, monkeypatch):
    monkeypatch.chdir(ROOT)
    said = sentence(argv)
    assert "on a disk" in said
    assert "gs://bucket/" in said


@pytest.mark.parametrize(
    ("code", "kind"),
    [(403, ConfigError), (404, ConfigError), (429, StorageError), (503, StorageError)],
)
def test_what_is_refused_is_bad_input_and_what_fails_is_not(code, kind):
    refused = pytest.raises(kind, match="it cannot be written: why")
    with refused, files.translated("it cannot be written"):
        raise HttpError({"code": code, "message": "why"})
    with pytest.raises(ZeroDivisionError), files.translated("it cannot be written"):
        print(1 / 0)


def test_no_such_bucket(cloud):
    with pytest.raises(ConfigError, match="workdir 'gs://none/run' cannot be written: "):
        Workdir("gs://none/run")


def test_without_gcsfs(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(
        ConfigError, match=r"needs gcsfs: \./launch/local\.sh --with=gcs in the source folder"
    ):
        files.locate("gs://bucket/run")


def test_a_disk_needs_nothing():
    assert files.locate("runs/one") == Path("runs/one")
