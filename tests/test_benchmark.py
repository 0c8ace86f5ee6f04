"""What the benchmark measures, of whom, and what it refuses."""

import importlib.util
import json
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import torch

from adadfq_jax import (
    benchmark,
    benchmark_games,
    benchmark_table,
    breakdown,
    cli,
    hardware,
    models,
    parallel,
    recipes,
)
from adadfq_jax.errors import ConfigError
from adadfq_jax.game import Game, Phase
from adadfq_jax.reference import opponents
from adadfq_jax.teachers.random import random_teacher
from tests.conftest import SIZE, make_teacher

# ml_collections loads a file in a way that Python deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

BASE = Path(__file__).parent.parent / "configs" / "base.py"


@pytest.fixture
def config(small_config):
    small_config.teacher.architecture = "resnet8_cifar"
    small_config.teacher.image_size = SIZE
    small_config.evaluation.batch_size = 16
    return small_config


def test_measures_ours_and_theirs(config, tmp_path):
    profile = tmp_path / "profile"
    result = benchmark.benchmark(
        config, steps=2, rounds=2, against="torch", profile=profile, games=2
    )
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
    macs = models.measure(models.build("resnet8_cifar", 10), SIZE).macs
    assert result["flops_per_step"] > 6 * 2 * macs * 8
    for key in ("ratio", "ratio_same_algorithm"):
        assert result[key] > 0
    assert result["torch"]["phases"]["play"]["median_s"] > 0
    assert "random weights" in result["network"]
    assert list(profile.rglob("*.xplane.pb"))
    assert result["games"].keys() == {"in turn", "side by side", "one program"}
    text = benchmark_table.table(result)
    for wanted in (
        "resnet8_cifar, 8 px, random weights",
        "w4a4",
        "authors' procedure",
        "optimizers",
    ):
        assert wanted in text


def test_tells_what_procedural_images_cost(config):
    config.samples.procedural = 1
    parts = benchmark.benchmark(config, steps=1, rounds=1)["parts"]
    assert parts["procedural images"] > 0
    assert parts["learning from them"] > 0


def test_steps_in_flight_are_timed_from_end_to_end(monkeypatch):
    """A device that takes 1, 2, ... seconds for its steps, one after the other."""
    now, ends, waited = [0.0], [], []

    def start():
        ends.append(max(now[0], ends[-1] if ends else 0.0) + len(ends) + 1)
        return len(ends)

    def wait(step):
        waited.append(step)
        now[0] = max(now[0], ends[step - 1])

    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(hardware.jax, "block_until_ready", wait)
    assert hardware.seconds_in_flight(start, 3) == [2.0, 3.0, 4.0]
    assert waited == [1, 2, 3, 4, 5] == list(range(1, len(ends) + 1))


def test_opponents_play_with_our_networks(config):
    torch.set_num_threads(1)  # several are slow on a busy machine
    teacher = make_teacher()
    game = Game.create(config, teacher.module, SIZE)
    assert opponents.serves(teacher.module)
    twin = opponents.networks.ResNet((1, 1, 1), (16, 32, 64), 10)
    weights = {
        opponents._key(name): opponents._to_torch(array)
        for name, array in opponents.flatten(teacher.variables).items()
    }
    missing = twin.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all("num_batches_tracked" in key for key in missing.missing_keys)
    images = np.random.default_rng(0).normal(size=(4, SIZE, SIZE, 3)).astype(np.float32)
    with torch.no_grad():
        logits = twin(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(logits, teacher(images), rtol=1e-3, atol=1e-3)
    for play in opponents.opponents(game, config, teacher.variables, "cpu").values():
        play()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_games_are_the_same_in_whatever_way_they_are_played(config):
    """Two steps of calibration and of play, float64, to 1e-8."""
    teacher = make_teacher()
    recipes.fill_in(config, teacher.architecture, SIZE)
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), teacher.variables)
    game = Game.create(config, teacher.module, SIZE)
    configs = [config.copy_and_resolve_references() for _ in range(2)]
    for seed, other in enumerate(configs):
        other.seed, other.quant.weight_bits = seed, 3 + seed
    starts = [game.init(other, variables) for other in configs]
    devices = jax.devices()[:2]

    def ends(way):
        states = starts
        for phase in (Phase.CALIBRATE, Phase.PLAY):
            play = benchmark_games.player(way, game, states, variables, devices, phase)
            for _ in range(2):
                played = play()
            states = [parallel.fetch(state) for state in played]
            if way == "one program":
                states = [jax.tree.map(lambda leaf, i=i: leaf[i], states[0]) for i in range(2)]
        return states

    alone = ends("in turn")
    for way in ("side by side", "one program"):
        chex.assert_trees_all_close(ends(way), alone, rtol=1e-8, atol=1e-8)


def test_every_program_is_a_part():
    times = {name: 1.0 for names in breakdown._DIFFERENCES.values() for name in names}
    parts = breakdown.differences(times | {"generator, gradient": 3.0})
    assert parts["generator forward"] == 1
    assert parts["generator backward"] == 2
    assert parts["of which quantizers"] == 0


def test_random_teachers_are_of_the_usual_size():
    teacher = random_teacher("resnet20_cifar")
    assert (teacher.image_size, teacher.classes) == (32, 10)


def test_without_torch_it_names_the_command(config, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name)
    )
    with pytest.raises(ConfigError, match=r"pip install '\.\[torch\]' in the source folder"):
        benchmark.benchmark(config, against="torch")


def test_a_network_that_the_reference_lacks(config):
    config.teacher.architecture = "mobilenet_v2b_pytorchcv"
    config.teacher.image_size = 32
    with pytest.raises(ConfigError, match=r"dense classifier, not mobilenet_v2b_pytorchcv"):
        benchmark.benchmark(config, against="torch")


def test_bad_input_on_the_command_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for flags, wanted in (
        ([f"--profile={tmp_path}"], "exists and is not empty"),
        ([f"--profile={tmp_path / 'file'}"], "cannot be made"),
        ([f"--profile={tmp_path / 'file' / 'below'}"], "cannot be made"),
        (["--against=tensorflow"], "must be torch"),
        (["--against=torch", "--config.game.method=adadfq_plus"], "set that, or leave"),
        (["--against=torch", "--config.samples.procedural=1"], "samples.procedural=0, not 1"),
        (["--against=torch", "--config.remat=True"], "remat=False, not True"),
        (["--steps=0"], "positive"),
        (["--config.batch_size=1"], "batch_size"),
        (["--config.teacher.architecture=resnet99"], "unknown network"),
        (["--config.teacher.path=nowhere.th"], "no teacher file"),
    ):
        assert cli.run(["benchmark", f"--config={BASE}", *flags]) == 2, flags
        printed = capsys.readouterr()
        assert wanted in printed.err, printed.err
        assert printed.err.count("\n") == 1
        assert not printed.out


def test_help(capsys):
    assert cli.run(["benchmark", "--help"]) == 0
    assert "--profile" in capsys.readouterr().out
