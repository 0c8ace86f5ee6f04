"""One game in several processes on this machine: the game of one, stopped and resumed together."""

import concurrent.futures
import hashlib
import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from adadfq_jax.devices import processes, rendezvous
from adadfq_jax.errors import ConfigError, DataError, StoppedError
from adadfq_jax.models.network import flatten
from adadfq_jax.training import quantize
from adadfq_jax.training.student import load_state
from tests import ROOT, pod_process

TOTAL = 12


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def make_images(folder):
    """Writes evaluation images, returns their path, and a user's for the student beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    np.savez(folder / "images.npz", x=images, y=np.arange(50) % 10)
    np.savez(folder / "own.npz", x=images[::-3])
    return folder / "images.npz"


def play(workdir, count, devices, *, stopped=-1, after=0, seeds=None):
    """Plays in so many processes; returns their exit codes and what they said."""
    images = make_images(workdir.parent)
    coordinator = f"127.0.0.1:{free_port()}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.pod_process", str(workdir), str(images), coordinator]
            + [
                str(n)
                for n in (count, index, devices, stopped, after, (seeds or [0] * count)[index])
            ],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]
    try:
        # Four processes that compile on two busy cores take minutes.
        said = [process.communicate(timeout=480)[0] for process in started]
    finally:
        for process in started:
            with process:  # waits, and closes what is open
                process.kill()
    return [process.returncode for process in started], said


def state_of(workdir):
    with jax.enable_x64(True):
        _, state, _, step = load_state(workdir)
    assert step == TOTAL
    return {
        name: array
        for part in ("generator", "student")
        for name, array in flatten({part: getattr(state, part).params}).items()
    } | flatten({"ranges": state.ranges})


def metrics_of(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "steps_per_second"} for line in lines]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The game of one process and one device, which is this one."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    with jax.enable_x64(True):
        config, teacher = pod_process.small_game(make_images(workdir.parent))
        config.devices = 1
        quantize.quantize(config, teacher, workdir, show_progress=False)
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two") / "run"
    codes, said = play(workdir, 2, 2)
    assert codes == [0, 0], said
    assert "process 1 of 2: 2 of 4 devices" in said[1]
    return workdir


def assert_same_game(one, other):
    """Parameters, ranges and all metrics, to 1e-8."""
    expected, got = state_of(one), state_of(other)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-8, atol=1e-8, err_msg=name)
    lines, others = metrics_of(one), metrics_of(other)
    assert len(lines) == len(others) > TOTAL
    for line, other_line in zip(lines, others, strict=True):
        assert line.keys() == other_line.keys()
        for name, value in line.items():
            if isinstance(value, float):
                np.testing.assert_allclose(other_line[name], value, rtol=1e-6, err_msg=name)
            else:
                assert other_line[name] == value, name


def test_two_processes_play_the_game_of_one(one, two):
    assert_same_game(one, two)
    assert (two / "result.json").exists()


@pytest.mark.devices
def test_a_checkpoint_of_four_devices_is_played_on_by_others(one, tmp_path):
    """By one, and by two of two processes: the game of one, to rounding."""
    for name, count, devices in (("by one", 1, 1), ("by four", 2, 2)):
        workdir = tmp_path / name / "run"
        assert play(workdir, 1, 4, stopped=0, after=9)[0] == [75]
        codes, said = play(workdir, count, devices)
        assert codes == [0] * count, said
        assert "resumed at step 9" in said[0]
        assert_same_game(one, workdir)


@pytest.mark.devices
@pytest.mark.parametrize(("count", "devices"), [(1, 4), (4, 1)])
def test_others_play_it_too(one, tmp_path, count, devices):
    codes, said = play(tmp_path / "run", count, devices)
    assert codes == [0] * count, said
    assert_same_game(one, tmp_path / "run")


@pytest.mark.devices
def test_a_signal_to_one_stops_all_and_they_go_on_together(two, tmp_path):
    """SIGTERM to the process that does not write; then the undisturbed run, bit for bit."""
    workdir = tmp_path / "run"
    codes, said = play(workdir, 2, 2, stopped=1, after=10)
    assert codes == [75, 75], said
    assert "stopped by SIGTERM at step 10 of 12, with a checkpoint" in said[0]
    codes, said = play(workdir, 2, 2)
    assert codes == [0, 0], said
    assert "resumed at step 10" in said[0]
    expected, got = state_of(two), state_of(workdir)
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
    # Read by one process of one device.
    codes, said = play(workdir, 1, 1)
    assert codes == [0], said
    assert "already complete" in said[0]


@pytest.mark.devices
def test_processes_of_other_configurations_are_named(tmp_path):
    codes, said = play(tmp_path / "run", 2, 1, seeds=[0, 1])
    assert codes == [2, 2]
    for text in said:
        assert "process 1 was started with another configuration than process 0" in text
    assert not (tmp_path / "run").exists()


def test_who_has_another_text_is_named(monkeypatch):
    """As of three processes, whose texts are gathered here."""
    texts = ["a", "a", "a"]

    def gathered(own):
        return np.array([list(hashlib.sha256(text.encode()).digest()) for text in texts])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gathered)
    processes.check_equal("configuration", "a")
    texts[1:] = ["b", "c"]
    with pytest.raises(ConfigError, match="process 1, 2 was started with another configuration"):
        processes.check_equal("configuration", "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", 2, None), "--process is missing"),
        (("host", 2, 0), "must be HOST:PORT of process 0, not 'host'"),
        (("host:99999", 2, 0), "must be HOST:PORT of process 0, not 'host:99999'"),
        (("host:1", 2, 2), "must be from 0 to 1, not 2"),
    ],
)
def test_incomplete_words(arguments, message):
    with pytest.raises(ConfigError, match=message):
        processes.start(*arguments)


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_never_comes(index):
    """The wait is bounded, and who did not come is named where that is known."""
    message = rf"within 0.5 seconds: process {1 - index} is missing"
    with pytest.raises(ConfigError, match=message):
        processes.start(f"127.0.0.1:{free_port()}", 2, index, seconds=0.5)


def test_those_who_came_learn_who_did_not():
    """Of four, 0, 1 and 3; a stranger's call does not count."""
    coordinator = f"127.0.0.1:{free_port()}"
    with concurrent.futures.ThreadPoolExecutor() as threads:
        waits = [
            threads.submit(rendezvous.missing, coordinator, 4, index, 3.0) for index in (1, 3, 0)
        ]
        time.sleep(0.5)
        with socket.create_connection(("127.0.0.1", int(coordinator.split(":")[1]))) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n")
            assert [wait.result(timeout=20) for wait in waits] == [[2], [2], [2]]


def test_those_who_are_all_there_wait_no_longer():
    coordinator = f"127.0.0.1:{free_port()}"
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor() as threads:
        waits = [threads.submit(rendezvous.missing, coordinator, 3, i, 60.0) for i in (2, 1, 0)]
        assert [wait.result(timeout=20) for wait in waits] == [[], [], []]
    assert time.monotonic() - began < 10
    # The port is free again at once.
    with socket.create_server(("127.0.0.1", int(coordinator.split(":")[1]))):
        pass


def test_an_error_of_one_process_alone_ends_it_at_once(monkeypatch, capfd):
    """Else it would wait at its end for the others, and they for it."""

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(DataError), processes.leaving_at_once():
        raise DataError("one process")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for error in (DataError("image 7 cannot be decoded"), ValueError("image 7 cannot be decoded")):
        with pytest.raises(SystemExit, match="1"), processes.leaving_at_once():
            raise error
        said = capfd.readouterr().err
        assert "image 7 cannot be decoded\nprocess 0 ends" in said
        assert ("Traceback" in said) == isinstance(error, ValueError)
    with pytest.raises(StoppedError), processes.leaving_at_once():  # all have it
        raise StoppedError("stopped", 15)
