"""Compiled steps: rematerialised, in bfloat16, and what they cost before the first one runs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adadfq_jax
from adadfq_jax.devices import memory, pmap
from adadfq_jax.errors import ConfigError
from adadfq_jax.game import programs
from adadfq_jax.game.state import Phase
from adadfq_jax.training.cost import Cost, estimate_cost
from adadfq_jax.training.progress import Progress
from tests.conftest import make_teacher
from tests.game.test_step import as_if_calibrated, make_game


def one_step(config, teacher, phase=Phase.PLAY, dtype=np.float32):
    """Returns (the program of one step, the state after it, its metrics)."""
    game = make_game(config, teacher)
    devices = jax.devices()[: config.devices]
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), teacher.variables)
    state = game.init(config, variables)
    state, variables = (
        pmap.replicate(tree, devices) for tree in (as_if_calibrated(state), variables)
    )
    program = programs.steps(game, devices, phase, 1, state, variables)
    state, metrics = program(state, variables, pmap.device_indices(devices))
    return program, pmap.fetch(state), pmap.fetch(metrics)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("architecture", "phase", "method", "devices"),
    [
        # Ranges, over both devices, are written in blocks that are run again.
        ("resnet8_cifar", Phase.CALIBRATE, "adadfq", 2),
        pytest.param("resnet8_cifar", Phase.PLAY, "adadfq_plus", 2, marks=pytest.mark.networks),
        pytest.param("resnet18_3x3_x0.125", Phase.PLAY, "adadfq", 1, marks=pytest.mark.networks),
        pytest.param(
            "resnet50_stride3x3_x0.125", Phase.PLAY, "adadfq", 1, marks=pytest.mark.networks
        ),
        pytest.param("mobilenet_v2_x0.25", Phase.PLAY, "adadfq", 1, marks=pytest.mark.networks),
    ],
)
def test_rematerialisation_changes_nothing_but_memory_and_time(
    small_config, architecture, phase, method, devices
):
    """Float64, to 1e-9."""
    teacher = make_teacher(architecture=architecture, size=32)
    small_config.game.method, small_config.devices = method, devices
    small_config.batch_size = 32  # so that activations take more than players and optimizers do
    small_config.generator.conditioning = "batch_norm"
    kept, *expected = one_step(small_config, teacher, phase, np.float64)
    small_config.remat = True
    again, *got = one_step(small_config, teacher, phase, np.float64)
    for state, _ in (got, expected):
        # Their true gradient is 0, and Adam makes steps of its rounding noise, which it remembers.
        player = state.generator
        for tree in (player.params, player.opt_state.mu, player.opt_state.nu):
            for conv in ("conv1", "conv2"):
                del tree[conv]["bias"]
    chex.assert_trees_all_close(got, expected, rtol=1e-9, atol=1e-9)
    assert again.cost_analysis()["flops"] > 1.02 * kept.cost_analysis()["flops"]
    assert memory.program_bytes(again) < memory.program_bytes(kept)


@pytest.mark.parametrize("part", ["teacher", "generator"])
def test_bfloat16_where_it_is_asked_for(small_config, teacher, part):
    program, _, exact = one_step(small_config, teacher)
    assert "bf16" not in program.as_text()
    small_config.precision[part] = "bfloat16"
    program, state, metrics = one_step(small_config, teacher)
    assert "bf16" in program.as_text()
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {
        np.dtype(t) for t in ("f4", "i4", "u4")
    }
    for name in ("l_g", "l_bns", "l_q"):
        assert metrics[name] != exact[name]
        np.testing.assert_allclose(metrics[name], exact[name], rtol=0.05, err_msg=name)


def test_of_a_bfloat16_teacher_logits_and_moments_are_float32(small_config, teacher):
    small_config.precision.teacher = "bfloat16"
    game = make_game(small_config, teacher)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    logits, moments = game.run_teacher(teacher.variables, jnp.array(images))
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, moments))} == {np.dtype(np.float32)}
    exact = teacher(images)
    assert not np.allclose(logits, exact, rtol=1e-5)
    np.testing.assert_allclose(logits, exact, rtol=0.05, atol=0.05)


def test_what_a_step_costs_is_known(small_config, teacher, capfd):
    result = adadfq_jax.quantize(small_config, teacher, show_progress=True).result
    assert (result.parameters, result.macs) == (75_290, 765_568)
    said = " ".join(capfd.readouterr().err.split())
    assert "network: 75,290 parameters, 765,568 MACs an image" in said
    assert f"a step (play) of 8 generated images: {result.step_bytes / 1e9:.2f} GB" in said
    assert "on each of 1 x cpu, with 8 generated images each" in said
    beside = Cost(1, 1, 1, "play", 10**9, None, "1 x cpu", 8, 16, 8).to_text()
    assert "of 8 generated images and 16 procedural ones: 1.00 GB" in beside


@pytest.mark.devices
def test_memory_grows_with_the_batch_and_shrinks_with_the_devices(small_config, teacher):
    needed = {}
    for batch, count in ((8, 1), (32, 1), (32, 4)):
        small_config.batch_size = batch
        game = make_game(small_config, teacher)
        state = game.init(small_config, teacher.variables)
        cost = estimate_cost(
            game, small_config, state, teacher, jax.devices()[:count], Progress(1, False)
        )
        needed[batch, count] = cost.step_bytes
    assert needed[8, 1] < needed[32, 4] < needed[32, 1]


def test_what_does_not_fit_is_refused_with_advice(small_config, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "memory_bytes", lambda *_: 1_000_000)
    with pytest.raises(ConfigError, match="of resnet8_cifar needs") as caught:
        adadfq_jax.quantize(small_config, teacher, tmp_path / "run")
    for wanted in ("remat=True", "precision.teacher=bfloat16", "batch_size below 8", "0.0 GB"):
        assert wanted in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()  # other fields are still free
    small_config.remat = True
    small_config.precision.teacher = "bfloat16"
    small_config.samples.procedural = 1
    with pytest.raises(ConfigError) as caught:
        adadfq_jax.quantize(small_config, teacher, tmp_path / "run")
    assert "remat" not in str(caught.value)
    assert "precision.teacher" not in str(caught.value)
    assert "samples.procedural below 1" in str(caught.value)


def test_memory_of_the_machine():
    """Those CPU devices that play share it."""
    one, four = (memory.memory_bytes(jax.devices()[0], count) for count in (1, 4))
    assert 2**28 < four < 2**42
    assert four == one // 4
