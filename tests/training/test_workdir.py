"""A run's folder: its owner, its identity, its files."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from adadfq_jax.config.fields import default_config
from adadfq_jax.config.identity import to_json
from adadfq_jax.errors import ConfigError
from adadfq_jax.models import pictures
from adadfq_jax.reporting.history import read_history
from adadfq_jax.training.metric_log import MetricLog
from adadfq_jax.training.workdir import Workdir, check_can_be_folder, check_run, read_json

HOLD = """
import sys, time
from adadfq_jax.training.workdir import Workdir
folder = Workdir(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def workdir(tmp_path):
    folder = Workdir(tmp_path / "run")
    yield folder
    folder.close()


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_folder_is_made_with_its_parents(tmp_path):
    Workdir(tmp_path / "a" / "b").close()
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("name", ["file", "file/run", "link"])
def test_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    if name == "link":  # to nothing
        (tmp_path / name).symlink_to(tmp_path / "absent")
    for take in (Workdir, check_can_be_folder, lambda path: check_run(path, default_config())):
        with pytest.raises(ConfigError, match=f"{name}' is a file"):
            take(tmp_path / name)
    (tmp_path / "link").unlink(missing_ok=True)
    assert contents(tmp_path) == {"file": b"mine"}


def test_unwritable_is_refused():
    with pytest.raises(ConfigError, match="'/proc/run' cannot be written"):
        Workdir("/proc/run")


def test_one_owner_at_a_time(workdir):
    with pytest.raises(ConfigError, match="in use by another run"):
        Workdir(workdir.path)
    workdir.close()
    Workdir(workdir.path).close()


def test_a_killed_owner_leaves_no_lock(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    ) as owner:
        try:
            assert owner.stdout.readline() == "held\n"
            with pytest.raises(ConfigError, match="in use by another run"):
                Workdir(tmp_path)
        finally:
            os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    Workdir(tmp_path).close()


def test_claim_writes_the_configuration(workdir):
    config = default_config("w3a3")
    workdir.claim(config)
    assert (workdir.path / "config.json").read_text() == to_json(config)


def test_claim_takes_what_may_change_on_resume(workdir):
    config = default_config()
    workdir.claim(config)
    config.epochs = 500
    config.data.path = "moved.npz"
    workdir.claim(config)
    assert read_json(workdir.path / "config.json")["epochs"] == 500


def test_claim_names_the_fields_of_another_identity(workdir):
    config = default_config()
    workdir.claim(config)
    before = contents(workdir.path)
    config.epochs = 500
    config.seed = 3
    config.quant.overrides = ("stem_*=w8a8",)
    with pytest.raises(ConfigError) as error:
        workdir.claim(config)
    message = str(error.value)
    assert "seed was 0, is 3" in message
    assert "quant.overrides was [], is ['stem_*=w8a8']" in message
    assert "epochs" not in message
    assert contents(workdir.path) == before


def test_claim_sees_fields_that_one_side_lacks(workdir):
    old = json.loads(to_json(default_config()))
    del old["game"]["beta"]
    workdir.write_text("config.json", json.dumps(old))
    with pytest.raises(ConfigError, match=r"game\.beta was None, is 1\.0"):
        workdir.claim(default_config())


@pytest.mark.parametrize(
    "name",
    [
        "checkpoints/best/weights.pth",
        "teacher.safetensors",
        "metrics/2024.csv",
        "diverged.json",
        "student.onnx",
        "student.pth",
        "report.html",
        "report/losses.png",
        "tensorboard/events.out.tfevents.1.mine",
    ],
)
def test_what_is_no_runs_is_refused_and_kept(workdir, name):
    """Somebody's own project: a run would remove it as what a kill left, or keep it as its own."""
    file = workdir.path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("mine")
    with pytest.raises(ConfigError, match=f"holds no run, but {name.split('/')[0]}, which a run"):
        workdir.claim(default_config())
    assert file.read_text() == "mine"
    assert not (workdir.path / "config.json").exists()


def test_what_a_run_does_not_write_is_no_obstacle(workdir):
    (workdir.path / "log.txt").write_text("mine")
    workdir.claim(default_config())
    assert (workdir.path / "log.txt").read_text() == "mine"


def test_what_was_put_into_a_run_later_is_refused_and_kept(workdir):
    """A run writes its picture and then its result, at its end."""
    config = default_config()
    workdir.claim(config)
    picture = workdir.path / "samples.png"
    picture.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"samples\.png' would be replaced, but is not a picture"):
        workdir.claim(config)
    assert picture.read_bytes() == b"mine"
    picture.write_bytes(pictures.to_png(Image.new("RGB", (2, 2))))
    workdir.claim(config)  # as after a kill between the two
    (workdir.path / "result.json").write_text('{"top1": 0.5}')
    with pytest.raises(ConfigError, match=r"result\.json' would be replaced, but is not a result"):
        workdir.claim(config)
    (workdir.path / "result.json").write_text('{"steps": 12}')
    workdir.claim(config)
    picture.write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"samples\.png' would be replaced, but is not a picture"):
        workdir.claim(config)


def test_what_somebody_keeps_under_the_name_of_the_lock_stays(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    Workdir(tmp_path).close()
    assert (tmp_path / ".lock").read_text() == "mine"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=r"cannot be locked \(Function not implemented\)"):
        Workdir(tmp_path)


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Workdir("~/run").close()
    assert [folder.name for folder in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("text", ["", '{"seed": 0', "[1]", "null"])
def test_damaged_configuration_is_refused_and_kept(workdir, text):
    (workdir.path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json' is damaged"):
        workdir.claim(default_config())
    assert (workdir.path / "config.json").read_text() == text


def test_files_are_whole_or_absent(workdir, monkeypatch):
    workdir.write_text("result.json", "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        workdir.write_text("result.json", "new")
    assert (workdir.path / "result.json").read_text() == "old"


def test_read_json_of_a_missing_file(tmp_path):
    assert read_json(tmp_path / "result.json") is None


def _logged(workdir):
    return (workdir.path / "metrics.jsonl").read_text().splitlines()


def test_metrics_are_on_disk_at_once(workdir):
    log = MetricLog(workdir, 0)
    log.write({"step": 1, "l_g": 0.5})
    assert [json.loads(line) for line in _logged(workdir)] == [{"step": 1, "l_g": 0.5}]
    log.close()


@pytest.mark.parametrize(
    "cut",
    [
        "",
        '{"step": 4, "l_g"',
        '{"st',
        "{",
        "\0\0\0",
        "4",
        "\n",
        b"\xff",
        '{"step": true}',
        10**5 * "[",
    ],
    ids=range(10),
)
def test_metrics_go_on_after_the_resumed_step(workdir, cut):
    lines = [json.dumps({"step": step, "l_g": 0.5}) for step in (1, 2, 2, 3, 4)]
    cut = cut if isinstance(cut, bytes) else cut.encode()
    (workdir.path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n" + cut)
    log = MetricLog(workdir, 2)
    log.write({"step": 3, "l_g": 0.25})
    log.close()
    assert _logged(workdir) == [*lines[:3], '{"step": 3, "l_g": 0.25}']


def test_an_integer_that_no_float_holds_is_read_as_infinite(tmp_path):
    line = f'{{"step": 1, "phase": "play", "l_g": 1{400 * "0"}}}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    assert read_history(tmp_path).not_finite == {"l_g": 1}


def test_a_configuration_of_another_program_is_no_run(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "resnet", "seed": 3}')
    config = default_config()
    with pytest.raises(ConfigError, match="is not the configuration of a run that adadfq wrote"):
        check_run(tmp_path, config)
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(ConfigError, match="was not written by adadfq"):
        check_run(tmp_path, config)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]
