"""What the benchmark measures, of whom, and what it refuses."""

import importlib.util
import json

import jax
import numpy as np
import pytest
import torch

from adadfq_jax.benchmarks import benchmark, table, timing, torch_opponent
from adadfq_jax.benchmarks.parts import _DIFFERENCES, part_programs, part_times
from adadfq_jax.cli import main
from adadfq_jax.config.resolve import resolve
from adadfq_jax.devices import pmap
from adadfq_jax.errors import ConfigError
from adadfq_jax.game.step import Game
from adadfq_jax.models import network, registry, size
from adadfq_jax.teachers.normalisation import NORMALISATIONS
from adadfq_jax.teachers.random_weights import random_teacher, teacher_or_random
from tests import ROOT
from tests.conftest import SIZE, make_teacher
from tests.game.test_step import as_if_calibrated, make_game

BASE = ROOT / "configs" / "base.py"


@pytest.fixture
def config(small_config):
    small_config.teacher.architecture = "resnet8_cifar"
    small_config.teacher.image_size = SIZE
    small_config.evaluation.batch_size = 16
    return small_config


def test_measures_ours_and_theirs(config, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark.machine, "cores", lambda: 1)  # else torch's threads stay several
    profile = tmp_path / "profile"
    result = benchmark.benchmark(config, steps=2, rounds=2, against="torch", profile=profile)
    assert json.loads(json.dumps(result)) == result
    assert set(result["phases"]) == {"calibrate", "warmup", "play"}
    for phase in result["phases"].values():
        assert 0 < phase["p10_s"] <= phase["median_s"] <= phase["p90_s"]
        assert phase["images_per_s"] == pytest.approx(8 / phase["median_s"])
        assert phase["compile_s"] > 0
    assert result["compile_s"] == pytest.approx(
        sum(phase["compile_s"] for phase in result["phases"].values())
    )
    for key in ("flops_per_step", "flops_per_s", "matmul_flops_per_s", "peak_bytes"):
        assert result[key] > 0, key
    # Of each multiply-add of a classifier: teacher forward and back, student forward, twice back to
    # the images and once to the weights.
    macs = size.measure_network(registry.build("resnet8_cifar", 10), SIZE).macs
    assert result["flops_per_step"] > 6 * 2 * macs * 8
    for key in ("ratio", "ratio_same_algorithm"):
        assert result[key] > 0
    assert result["torch"]["phases"]["play"]["median_s"] > 0
    assert "random weights" in result["network"]
    assert list(profile.rglob("*.xplane.pb"))
    text = table.benchmark_table(result)
    for wanted in (
        "resnet8_cifar, 8 px, random weights",
        "w4a4",
        "authors' procedure",
        "optimizers",
    ):
        assert wanted in text


def test_tells_what_procedural_images_cost(config):
    config.samples.procedural = 1
    teacher, devices = make_teacher(), jax.devices()[:1]
    game = make_game(config, teacher)
    state = as_if_calibrated(game.init(config, teacher.variables))
    state, variables = (pmap.replicate(tree, devices) for tree in (state, teacher.variables))
    programs = part_programs(game, state, variables, devices, 8)
    wanted = ("procedural images", "learning from them")
    parts = part_times({name: timing.seconds(programs[name], 1)[0] for name in wanted})
    assert set(parts) == set(wanted)
    assert min(parts.values()) > 0


def test_steps_in_flight_are_timed_from_end_to_end(monkeypatch):
    """A device that takes 1, 2, ... seconds for its steps, one after the other."""
    now, ends, waited = [0.0], [], []

    def start():
        ends.append(max(now[0], ends[-1] if ends else 0.0) + len(ends) + 1)
        return len(ends)

    def wait(step):
        waited.append(step)
        now[0] = max(now[0], ends[step - 1])

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing.jax, "block_until_ready", wait)
    assert timing.seconds_in_flight(start, 3) == [2.0, 3.0, 4.0]
    assert waited == [1, 2, 3, 4, 5] == list(range(1, len(ends) + 1))


def test_opponents_play_with_our_networks(config):
    teacher = make_teacher()
    game = Game.create(config, teacher.module, SIZE)
    assert torch_opponent.serves(teacher.module)
    twin = torch_opponent.networks.ResNet((1, 1, 1), (16, 32, 64), 10)
    weights = {
        torch_opponent._key(name): torch_opponent._to_torch(array)
        for name, array in network.flatten(teacher.variables).items()
    }
    missing = twin.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all("num_batches_tracked" in key for key in missing.missing_keys)
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        logits = twin(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(logits, teacher(images), rtol=1e-3, atol=1e-3)
    for play in torch_opponent.opponents(game, config, teacher.variables, "cpu").values():
        play()


def test_every_program_is_a_part():
    times = {name: 1.0 for names in _DIFFERENCES.values() for name in names}
    parts = part_times(times | {"generator, gradient": 3.0})
    assert parts["generator forward"] == 1
    assert parts["generator backward"] == 2
    assert parts["of which quantizers"] == 0


def test_random_teachers_are_of_the_usual_size():
    teacher = random_teacher("resnet20_cifar")
    assert (teacher.image_size, teacher.classes) == (32, 10)


def test_random_teachers_have_the_normalisation_that_is_stated(config):
    config.data.mean, config.data.std = NORMALISATIONS["imagenet"]
    teacher, _ = teacher_or_random(config)
    assert (teacher.mean, teacher.std) == NORMALISATIONS["imagenet"]
    assert resolve(config, teacher).data.mean == teacher.mean


def test_without_torch_it_names_the_command(config, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name)
    )
    with pytest.raises(ConfigError, match=r"launch/local.sh --with=torch in the source folder"):
        benchmark.benchmark(config, against="torch")


def test_a_network_that_the_reference_lacks(config):
    config.teacher.architecture = "mobilenet_v2b_pytorchcv"
    config.teacher.image_size = 32
    with pytest.raises(ConfigError, match=r"dense classifier, not mobilenet_v2b_pytorchcv"):
        benchmark.benchmark(config, against="torch")


def test_bad_input_on_the_command_line(tmp_path, sentence):
    (tmp_path / "file").write_text("")
    for flags, wanted in (
        ([f"--profile={tmp_path}"], "exists and is not empty"),
        ([f"--profile={tmp_path / 'file'}"], "cannot be made"),
        ([f"--profile={tmp_path / 'file' / 'below'}"], "cannot be made"),
        (["--against=tensorflow"], "must be torch"),
        (["--against=torch", "--config.game.method=adadfq_plus"], "set that, or leave"),
        (["--against=torch", "--config.samples.procedural=1"], "samples.procedural=0, not 1"),
        (["--against=torch", "--config.remat=True"], "remat=False, not True"),
        (["--steps=0"], "--steps=0: it must be an integer, at least 1."),
        (["--config.batch_size=1"], "batch_size"),
        (["--config.teacher.architecture=resnet99"], "unknown network"),
        (["--config.teacher.path=nowhere.th"], "no teacher file"),
    ):
        assert wanted in sentence(["benchmark", f"--config={BASE}", *flags])


def test_help(capsys):
    assert main.run(["benchmark", "--help"]) == 0
    assert "--profile" in capsys.readouterr().out
