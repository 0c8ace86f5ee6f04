"""Runs: complete, resumed, killed, stopped, diverged, without data, without a workdir."""

import base64
import contextlib
import dataclasses
import functools
import io
import json
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image

from adadfq_jax.errors import (
    CheckpointError,
    ConfigError,
    DivergedError,
    StoppedError,
    TeacherError,
)
from adadfq_jax.evaluation import drift
from adadfq_jax.game import programs
from adadfq_jax.models.network import flatten
from adadfq_jax.teachers.load import save_teacher
from adadfq_jax.training import quantize, watch
from adadfq_jax.training.result import read_result
from adadfq_jax.training.student import load_student
from tests import ROOT
from tests.conftest import make_result, make_small_config, make_teacher

TOTAL = 12  # steps of `small_config`


@pytest.fixture
def data_path(tmp_path) -> str:
    random = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(
        path,
        x=random.integers(0, 256, (50, 8, 8, 3), np.uint8),
        y=random.integers(0, 10, 50).astype(np.uint8),
    )
    return str(path)


def run(config, teacher, workdir=None, **kwargs):
    return quantize.quantize(config, teacher, workdir, show_progress=False, **kwargs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where `whole` was played."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture(scope="module")
def whole(folder):
    """The undisturbed game of `small_config`, without data and without a workdir."""
    with contextlib.chdir(folder):
        return run(make_small_config(), make_teacher())


def assert_same_student(one, other):
    first, second = flatten(one.variables), flatten(other.variables)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def stop_at(step):
    """Asks to stop after so many dispatches; the first two calls are before them."""
    count = -2

    def should_stop():
        nonlocal count
        count += 1
        return signal.SIGTERM if count == step else None

    return should_stop


def test_a_stop_while_a_run_prepares_is_one_before_it_begins(
    small_config, teacher, tmp_path, monkeypatch
):
    compiled = []

    def estimate_cost(*_):
        compiled.append(True)
        return types.SimpleNamespace(to_text=lambda: "its cost")

    monkeypatch.setattr(quantize, "estimate_cost", estimate_cost)
    # While the networks are prepared, and while a program compiles.
    for asked, count in (([], 0), ([None], 1)):
        with pytest.raises(StoppedError, match="SIGTERM before the first step") as caught:
            run(
                small_config,
                teacher,
                tmp_path / "run",
                should_stop=lambda asked=asked: asked.pop() if asked else signal.SIGTERM,
            )
        assert caught.value.signal == signal.SIGTERM
        assert len(compiled) == count
        assert not (tmp_path / "run" / "config.json").exists()


def test_the_seconds_of_a_run_are_those_of_all_of_it(small_config, teacher, monkeypatch):
    estimate = quantize.estimate_cost

    def slowly(*args):
        later = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: later() + 1000)
        return estimate(*args)

    monkeypatch.setattr(quantize, "estimate_cost", slowly)
    began = time.monotonic()
    student = run(small_config, teacher)
    assert 0 < time.monotonic() - began - student.result.seconds < 1000


def test_a_run_leaves_its_files_and_is_read_when_called_again(
    small_config, teacher, whole, tmp_path, data_path
):
    small_config.data.source, small_config.data.path = "npz", data_path
    workdir = tmp_path / "run"
    student = run(small_config, teacher, workdir)
    assert_same_student(whole, student)  # of which data change nothing

    result = json.loads((workdir / "result.json").read_text())
    assert result == dataclasses.asdict(student.result)
    assert result["steps"] == TOTAL
    assert 0 <= result["calibrated_top1"] <= result["best_top1"] <= 1
    assert result["best_top1"] >= result["top1"]
    assert result["teacher_top5"] >= result["teacher_top1"]
    written = json.loads((workdir / "config.json").read_text())
    assert written["teacher"]["digest"] == teacher.digest
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "l_g" in line] == list(range(1, TOTAL + 1))
    assert [line["step"] for line in lines if "evaluation" in line] == [6, 9, 12]
    assert {line["phase"] for line in lines if "phase" in line} == {"calibrate", "warmup", "play"}
    assert (workdir / "samples.png").read_bytes().startswith(b"\x89PNG")
    kept = sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert kept[-1] == TOTAL
    assert result["healthiest_step"] in kept
    evaluated = [line for line in lines if "evaluation" in line]
    healthiest = max(evaluated, key=lambda line: line["health"])
    assert healthiest["step"] == result["healthiest_step"]
    assert healthiest["top1"] == result["healthiest_top1"]
    assert evaluated[-1]["health"] == result["health"]
    assert all(sum(line["h_prime_histogram"]) == 40 for line in evaluated)
    pictures = sorted((workdir / "samples").iterdir())
    assert [int(path.stem) for path in pictures] == [3, 6, 9, 12]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)

    before = {p: p.stat().st_mtime_ns for p in workdir.iterdir() if p.is_file()}
    again = run(small_config, teacher, workdir)
    assert again.result == student.result
    assert_same_student(student, again)
    assert before.keys() == {p for p in workdir.iterdir() if p.is_file()}
    assert_same_student(student, load_student(workdir))
    images = np.zeros((3, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(student(images), again(images))
    with pytest.raises(ConfigError, match=r"must be uint8 pixels, or floats .* not int64"):
        student(np.zeros((3, 8, 8, 3), np.int64))

    save_teacher(make_teacher(seed=1), workdir / "teacher.safetensors")
    with pytest.raises(CheckpointError, match="is not the teacher of the run"):
        load_student(workdir)


def test_without_data_and_workdir(whole, folder):
    student = whole
    for name in ("teacher_top1", "top1", "calibrated_top1", "best_top1", "best_step"):
        assert getattr(student.result, name) is None
    assert student.result.healthiest_step in (6, 9, 12)
    assert 0 <= student.result.agreement <= 1
    assert list(folder.iterdir()) == []
    first, *others = student.result.to_text().splitlines()
    assert first.startswith(f"agreement             {student.result.agreement:.2%} of generated")
    shown = "\n".join(others)
    assert shown.count("not measured") == 1
    assert f"step {student.result.healthiest_step}, chosen without data" in shown
    # A notebook's line and table, without the arrays; the images are the generator's.
    line = repr(student)
    assert line.startswith("Student(resnet8_cifar, w4a4, 10 classes, 8x8 pixels, ")
    assert f"agreement {student.result.agreement:.2%} on generated images" in line
    assert len(line) < 200
    html = student._repr_html_()
    assert "<th style='text-align:left'>steps</th>" in html
    (picture,) = re.findall(r"data:image/png;base64,([^']+)", html)
    width, height = Image.open(io.BytesIO(base64.b64decode(picture))).size
    assert width > 5 * height >= 5 * 48
    assert repr(student.teacher) == (
        "Teacher(resnet8_cifar, full precision, 10 classes, 8x8 pixels, 303 kB)"
    )
    assert "of the teacher&#x27;s 303 kB" in html
    assert "img" not in student.teacher._repr_html_()


def test_a_result_without_class_names_is_read_and_one_without_numbers_is_not(tmp_path):
    """The names were added later; what else is missing was lost."""
    fields = dataclasses.asdict(make_result(class_names=["ant", "bee"]))
    path = tmp_path / "result.json"
    path.write_text(json.dumps(fields))
    assert read_result(tmp_path).class_names == ["ant", "bee"]
    del fields["class_names"]
    path.write_text(json.dumps(fields))
    assert read_result(tmp_path).class_names is None
    del fields["health"]
    path.write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match="has no health"):
        read_result(tmp_path)


@pytest.mark.parametrize("step", [1, 4, 10])
def test_stopped_and_resumed_is_uninterrupted(small_config, teacher, whole, tmp_path, step):
    with pytest.raises(StoppedError, match=f"SIGTERM at step {step} of {TOTAL}"):
        run(small_config, teacher, tmp_path, should_stop=stop_at(step))
    resumed = run(small_config, teacher, tmp_path)
    assert_same_student(whole, resumed)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "l_g" in line] == list(range(1, TOTAL + 1))
    assert whole.result.range_change == resumed.result.range_change


@pytest.mark.kills
def test_the_plus_is_resumed_and_keeps_its_length(small_config, teacher, tmp_path):
    """Its optimizer's moments and its ranges are part of the state; its rate of the whole game."""
    small_config.game.method = "adadfq_plus"
    whole = run(small_config, teacher)
    with pytest.raises(StoppedError):
        run(small_config, teacher, tmp_path, should_stop=stop_at(10))
    assert_same_student(whole, run(small_config, teacher, tmp_path))
    assert_same_student(whole, load_student(tmp_path))
    small_config.epochs = 5
    with pytest.raises(ConfigError, match="epochs was 4, is 5"):
        run(small_config, teacher, tmp_path)


def test_killed_and_resumed_is_uninterrupted(small_config, teacher, tmp_path):
    """kill -9 while the command line plays; its lock does not outlive it."""
    small_config.epochs, small_config.checkpoint.every_steps = 20, 20
    small_config.evaluation.every_epochs = 20
    path, workdir = tmp_path / "teacher.safetensors", tmp_path / "run"
    save_teacher(teacher, path)
    config_file = tmp_path / "config.py"
    config_file.write_text(
        "from tests.conftest import make_small_config\n"
        "def get_config():\n"
        "    config = make_small_config()\n"
        "    config.epochs, config.checkpoint.every_steps = 20, 20\n"
        "    config.evaluation.every_epochs = 20\n"
        f"    config.teacher.path = {str(path)!r}\n"
        "    return config\n"
    )
    command = ["-m", "adadfq_jax", "quantize", f"--config={config_file}", f"--workdir={workdir}"]
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(workdir.glob("checkpoints/[0-9]*/commit_success.txt")):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (workdir / "result.json").exists()

    resumed = run(small_config, teacher, workdir)
    assert resumed.result.steps == 60
    assert_same_student(run(small_config, teacher), resumed)


def test_a_longer_schedule_goes_on_and_another_identity_is_refused(small_config, teacher, tmp_path):
    run(small_config, teacher, tmp_path)
    small_config.epochs = 5
    longer = run(small_config, teacher, tmp_path)
    assert longer.result.steps == TOTAL + 3
    small_config.seed = 7
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="seed was 0, is 7"):
        run(small_config, teacher, tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_health_does_not_depend_on_the_memory_of_evaluation(small_config, teacher, whole):
    """It may change on resume, and students before and after are compared."""
    small_config.evaluation.batch_size = 12
    after = run(small_config, teacher).result
    for name in ("health", "agreement", "calibrated_agreement", "healthiest_step"):
        assert getattr(whole.result, name) == getattr(after, name)


def test_a_path_is_no_teacher(small_config):
    with pytest.raises(TeacherError, match="one of load_teacher or from_torch, not a str"):
        run(small_config, "resnet20.th")


def test_swapped_arguments_are_told(small_config, teacher):
    with pytest.raises(ConfigError, match="one of default_config, not a Teacher"):
        quantize.quantize(teacher, small_config)


def shorten(config):
    """An epoch of calibration and one of play."""
    config.warmup_epochs, config.epochs = 1, 2


@pytest.fixture(scope="module")
def short():
    config = make_small_config()
    shorten(config)
    return run(config, make_teacher())


@pytest.mark.parametrize("packing", [(), ("cpu",)], ids=["plain", "packed"])
def test_several_steps_a_dispatch_are_the_same_game(
    small_config, teacher, short, monkeypatch, packing
):
    monkeypatch.setattr(programs, "_PACKING", packing)
    # Single steps are not packed; of programs of several, the cache does not tell which are.
    single, several = programs._compiled, functools.cache(programs._compiled.__wrapped__)

    def compiled(game, devices, phase, count, *types):
        return (single if count == 1 else several)(game, devices, phase, count, *types)

    monkeypatch.setattr(programs, "_compiled", compiled)
    shorten(small_config)
    small_config.steps_per_dispatch = 2  # 2 + 1 in an epoch of 3
    two = run(small_config, teacher)
    assert several.cache_info().currsize == 2
    for name, array in flatten(short.variables).items():
        np.testing.assert_allclose(
            array, flatten(two.variables)[name], rtol=1e-2, atol=1e-3, err_msg=name
        )
    assert two.result.steps == 6


def test_divergence_names_the_term_and_keeps_the_last_good_checkpoint(
    small_config, teacher, tmp_path
):
    small_config.student.learning_rate = 1e30
    small_config.checkpoint.every_steps = 1
    with pytest.raises(DivergedError, match=r"the run diverged: \w+ is (nan|inf) at step \d+"):
        run(small_config, teacher, tmp_path)
    newest = load_student(tmp_path)
    assert newest.result is None
    for name, array in flatten(newest.variables).items():
        assert np.isfinite(array).all(), name


def test_a_rising_bns_is_a_warning(small_config, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "_BNS_ALARM_FACTOR", 0.0)
    monkeypatch.setattr(watch, "_BNS_ALARM_STEPS", 5)
    run(small_config, teacher, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    warnings = [line for line in lines if "warning" in line]
    assert len(warnings) == 1
    assert "L_BNS" in warnings[0]["warning"]
    assert warnings[0]["step"] == 7  # the fifth step after calibration, counted from 0


def test_drift_is_a_warning_once(small_config, teacher, tmp_path, monkeypatch, capfd):
    """It is in the log and on the terminal at the evaluation at which it is plain."""
    monkeypatch.setattr(drift, "EVALUATIONS", 1)
    monkeypatch.setattr(drift, "FALL", -1.0)  # every evaluation lies below the best
    small_config.evaluation.every_epochs = 1
    quantize.quantize(small_config, teacher, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    (warning,) = [line for line in lines if "warning" in line]
    played = [
        line
        for line in lines
        if line.get("evaluation")
        and line["step"] > small_config.warmup_epochs * small_config.steps_per_epoch
    ]
    assert warning["step"] == played[0]["step"]
    assert "the student is drifting; the healthiest checkpoint is of" in warning["warning"]
    assert capfd.readouterr().err.count("warning: agreement on generated images") == 1


def test_full_precision_student_is_the_teacher(teacher):
    """One definition: without bits, the student's own code gives the teacher's logits exactly."""
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    logits, _ = teacher.module.apply(teacher.variables, images, mutable=["statistics", "ranges"])
    np.testing.assert_array_equal(logits, teacher.module.apply(teacher.variables, images))


def test_a_dispatch_never_crosses_an_epoch(small_config):
    small_config.steps_per_dispatch, small_config.steps_per_epoch = 4, 10
    pieces = list(programs.dispatches(0, 20, small_config, "gpu"))
    assert pieces == [4, 4, 2, 4, 4, 2]
    assert list(programs.dispatches(5, 20, small_config, "gpu")) == [3, 2, 4, 4, 2]
    small_config.steps_per_dispatch = 0
    assert set(programs.dispatches(0, 20, small_config, "cpu")) == {1}


def test_overrides_reach_the_student(small_config, teacher):
    small_config.quant.overrides = ("stem_*=w8a8", "classifier=w8")
    student = run(small_config, teacher)
    bits = {name: int(value) for name, value in flatten(student.variables["bits"]).items()}
    assert bits["stem_conv/weight"] == bits["stem_relu/activation"] == 8
    assert bits["classifier/weight"] == 8
    assert bits["stage1_block1/conv1/weight"] == 4
    assert student.result.overrides == ["stem_*=w8a8", "classifier=w8"]


REAL = ROOT.parent / "shared"


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason="the real CIFAR-10 teacher is not at ../shared")
def test_real_cifar10(tmp_path):
    """w4a4, 12 epochs of 200 steps, all 10,000 test images: about 8 minutes on 2 cores."""
    from configs.cifar10_resnet20 import get_config

    config = get_config("w4a4")
    config.teacher.path = str(REAL / "teachers" / "resnet20_cifar10.th")
    config.data.source, config.data.path = "npz", str(REAL / "data" / "cifar10_test.npz")
    config.epochs, config.devices = 12, 1
    config.evaluation.every_epochs = 4
    student = quantize.quantize(config, workdir=tmp_path)
    print(student.result.to_text())
    assert abs(student.result.teacher_top1 - 0.917) <= 0.001
    assert student.result.top1 >= 0.895
