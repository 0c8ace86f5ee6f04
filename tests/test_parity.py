"""A whole two-player step agrees with the independent PyTorch transcription in `reference/`."""

import jax
import numpy as np
import pytest
import torch

from adadfq_jax import parallel
from adadfq_jax.assets import DIGITS_TEACHER
from adadfq_jax.config import default_config
from adadfq_jax.game import Game, Phase
from adadfq_jax.network import flatten
from adadfq_jax.reference import game as reference
from adadfq_jax.reference import networks
from adadfq_jax.teachers import load_teacher

SIZE, BATCH = 16, 8
PHASES = {Phase.CALIBRATE: "calibrate", Phase.WARMUP: "warmup", Phase.PLAY: "play"}
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def to_torch(array) -> torch.Tensor:
    """HWIO kernels become OIHW, dense ones (out, in)."""
    array = np.asarray(array)
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return torch.from_numpy(array.transpose(axes).copy())


def classifier_key(name: str) -> str:
    *layers, leaf = name.split("/")[1:]
    prefix = ""
    if len(layers) == 2:
        stage, block = layers[0].removeprefix("stage").split("_block")
        prefix = f"layer{stage}.{int(block) - 1}."
    layer = {"stem_conv": "conv1", "stem_norm": "norm1", "classifier": "linear"}.get(
        layers[-1], layers[-1]
    )
    kind = NORM[leaf] if layer.startswith("norm") else "bias" if leaf == "bias" else "weight"
    return f"{prefix}{layer.replace('norm', 'bn')}.{kind}"


def classifier_state(variables) -> dict[str, torch.Tensor]:
    return {
        classifier_key(name): to_torch(array)
        for name, array in flatten(variables).items()
        if name.startswith(("params", "batch_stats"))
    }


def generator_state(params) -> dict[str, torch.Tensor]:
    renamed = {
        "embedding": "embedding.weight",
        "dense_kernel": "dense.weight",
        "dense_bias": "dense.bias",
    }
    state = {}
    for name, array in flatten(params).items():
        layer, _, leaf = name.partition("/")
        if layer.startswith("norm"):
            key = f"bn{int(layer[4:]) - 1}.{NORM[leaf]}"
        else:
            key = renamed.get(name) or f"{layer}.{'bias' if leaf == 'bias' else 'weight'}"
        # PyTorch, too, keeps the embedding as (classes, latent).
        state[key] = torch.from_numpy(array.copy()) if name == "embedding" else to_torch(array)
    return state


def ours_as_torch(state) -> tuple[dict, dict, list]:
    student = classifier_state({"params": state.student.params})
    ranges = flatten(state.ranges)
    return generator_state(state.generator.params), student, ranges


def torch_ranges(student: networks.Classifier) -> dict[str, np.ndarray]:
    found = {}
    for name, module in student.named_modules():
        if isinstance(module, networks.Activation):
            parts = name.split(".")
            if len(parts) == 1:
                layer = "stem_relu"
            else:
                stage, block, act = parts
                layer = f"stage{stage[5:]}_block{int(block) + 1}/relu{act[3:]}"
            found[f"{layer}/minimum"] = module.low.numpy()
            found[f"{layer}/maximum"] = module.high.numpy()
    return found


def play(dtype, procedure: str, steps: int):
    """Yields (phase, our metrics, reference's result, our state, the reference) step by step."""
    config = default_config("w4a4")
    config.batch_size = BATCH
    # The built-in teacher: with a random one L_BNS is so large that rounding noise passes 1e-9.
    teacher = load_teacher(DIGITS_TEACHER)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), teacher.variables)
    game = Game.create(config, teacher.module, SIZE)
    state = jax.tree.map(np.asarray, game.init(config, variables))

    p = networks.Classifier().to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    p.load_state_dict(classifier_state(variables), strict=False)
    q = p.quantized((4, 4))
    g = networks.Generator(size=SIZE).to(p.linear.weight.dtype)
    g.load_state_dict(generator_state(state.generator.params))
    other = reference.Game(p, q, g, procedure=procedure)

    devices = jax.devices()[:1]
    state = parallel.replicate(state, devices)
    variables = parallel.replicate(variables, devices)
    for phase, name in PHASES.items():
        step = parallel.map_over_devices(
            lambda state, teacher, index, phase=phase: game.step(state, teacher, index, phase),
            devices,
        )
        for _ in range(steps):
            noise, labels = map(np.asarray, game.draw(parallel.fetch(state)))
            state, metrics = step(state, variables, parallel.device_indices(devices))
            result = other.step(
                torch.from_numpy(noise.copy()), torch.from_numpy(labels.astype(np.int64)), name
            )
            yield phase, parallel.fetch(metrics), result, parallel.fetch(state), (g, q)


LOSSES = ("l_ds", "l_as", "l_bal", "l_margin", "l_bns", "l_g", "l_q")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("procedure", reference.PROCEDURES)
def test_step_in_float64(procedure):
    """Losses to 1e-8 relative; parameters and ranges to 1e-9 absolute; in all three phases."""
    seen = set()
    for phase, metrics, result, state, (g, q) in play(np.float64, procedure, steps=2):
        seen.add(phase)
        for name in LOSSES:
            np.testing.assert_allclose(metrics[name], result[name].item(), rtol=1e-8, err_msg=name)
        np.testing.assert_allclose(metrics["h_prime"], result["entropy"].mean().item(), rtol=1e-8)
        ours_g, ours_q, ranges = ours_as_torch(state)
        for ours, theirs in ((ours_g, g.state_dict()), (ours_q, q.state_dict())):
            for name, value in ours.items():
                np.testing.assert_allclose(value, theirs[name], rtol=0, atol=1e-9, err_msg=name)
        for name, value in torch_ranges(q).items():
            np.testing.assert_allclose(ranges[name], value, rtol=0, atol=1e-9, err_msg=name)
    assert seen == set(Phase)


def test_step_in_float32():
    """The first step: losses and ranges to 1e-3 relative.

    Not the parameters after it: G's convolution biases before a BatchNorm have a true gradient of
    0, and Adam turns the rounding noise there into steps of the size of its learning rate.
    """
    _, metrics, result, state, (_, q) = next(play(np.float32, "lean", steps=1))
    for name in LOSSES:
        np.testing.assert_allclose(metrics[name], result[name].item(), rtol=1e-3, err_msg=name)
    ranges = flatten(state.ranges)
    for name, value in torch_ranges(q).items():
        np.testing.assert_allclose(ranges[name], value, rtol=1e-3, atol=1e-6, err_msg=name)
