"""A whole two-player step agrees with the independent PyTorch transcription in `reference/`."""

import jax
import numpy as np
import pytest
import torch

from adadfq_jax.assets import DIGITS_TEACHER
from adadfq_jax.benchmarks.torch_opponent import twin
from adadfq_jax.config import recipes
from adadfq_jax.config.fields import default_config
from adadfq_jax.devices import pmap
from adadfq_jax.game import programs
from adadfq_jax.game.state import Phase
from adadfq_jax.game.step import Game
from adadfq_jax.models.network import flatten
from adadfq_jax.reference import game as reference
from adadfq_jax.reference import networks
from adadfq_jax.teachers.load import load_teacher
from tests.conftest import make_teacher, settled

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
    kind = NORM[leaf] if "norm" in layer else "bias" if leaf == "bias" else "weight"
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
        # Tables are (classes, channels) in PyTorch, too.
        table = name == "embedding" or layer.startswith("norm")
        state[key] = torch.from_numpy(array.copy()) if table else to_torch(array)
    return state


def with_ranges(ranges, values):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full_like(leaf, values.get(path[-1].key, leaf)), ranges
    )


def ours_as_torch(state) -> tuple[dict, dict, list]:
    student = classifier_state({"params": state.student.params["params"]})
    ranges = flatten(state.ranges)
    return generator_state(state.generator.params), student, ranges


def torch_ranges(student: networks.Classifier) -> dict[str, np.ndarray]:
    found = {}
    for name, module in student.named_modules():
        if isinstance(module, networks.Activation):
            *block, act = name.split(".")
            layer = act.replace("act", "relu") if block or act != "act1" else "stem_relu"
            if block:
                layer = f"stage{block[0][5:]}_block{int(block[1]) + 1}/{layer}"
            found[f"{layer}/minimum"] = module.low.numpy()
            found[f"{layer}/maximum"] = module.high.numpy()
    return found


def play(
    dtype,
    procedure,
    steps,
    *,
    ours=None,
    theirs=None,
    small=False,
    teacher=None,
    conditioning="embedding",
):
    """Yields (phase, our metrics, reference's result, our state, the reference) step by step.

    `ours` are fields of `config.game`, `theirs` arguments of the reference that say the same.
    A small game is one of ResNet-8, or of a teacher, in play alone, with ranges from 0 to 3.
    """
    config = default_config("w4a4").copy_and_resolve_references()
    config.batch_size = BATCH
    config.game.update(ours or {})
    config.generator.conditioning = conditioning
    # Settled: with other statistics L_BNS is so large that rounding noise passes 1e-9.
    if teacher is None:
        teacher = make_teacher() if small else settled(make_teacher(size=SIZE))
    size = teacher.image_size if small else SIZE
    recipes.fill_in(config, teacher.architecture, size)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), teacher.variables)
    game = Game.create(config, teacher.module, size)
    state = jax.tree.map(np.asarray, game.init(config, variables))

    p = twin(teacher.module)
    p = p.to(torch.from_numpy(np.zeros(1, dtype)).dtype)
    p.load_state_dict(classifier_state(variables), strict=False)
    q = p.quantized((4, 4))
    conditional = config.generator.conditioning == "batch_norm"
    g = networks.Generator(size=size, conditional=conditional).to(p.linear.weight.dtype)
    g.load_state_dict(generator_state(state.generator.params))
    other = reference.Game(p, q, g, procedure=procedure, **theirs or {})

    if small:
        ranges = {"minimum": 0.0, "maximum": 3.0}
        state = state.replace(ranges=with_ranges(state.ranges, ranges))
        for module in q.activations:
            module.low.fill_(ranges["minimum"])
            module.high.fill_(ranges["maximum"])

    devices = jax.devices()[:1]
    state = pmap.replicate(state, devices)
    variables = pmap.replicate(variables, devices)
    for phase, name in PHASES.items():
        if small and phase is not Phase.PLAY:
            continue
        step = programs.steps(game, devices, phase, 1, state, variables)
        for _ in range(steps):
            noise, labels = map(np.asarray, game.draw(pmap.fetch(state)))
            state, metrics = step(state, variables, pmap.device_indices(devices))
            result = other.step(
                torch.from_numpy(noise.copy()), torch.from_numpy(labels.astype(np.int64)), name
            )
            metrics = {name: rows[0] for name, rows in pmap.fetch(metrics).items()}
            yield phase, metrics, result, pmap.fetch(state), (g, q)


LOSSES = ("l_ds", "l_as", "l_bal", "l_margin", "l_bns", "l_g", "l_q")


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("procedure", "path"),
    [
        *((name, None) for name in reference.PROCEDURES),
        pytest.param("authors", DIGITS_TEACHER, marks=pytest.mark.parity, id="authors-resnet20"),
    ],
)
def test_step_in_float64(procedure, path):
    """Losses to 1e-8 relative; parameters and ranges to 1e-9 absolute; in all three phases."""
    seen = set()
    teacher = path and load_teacher(path)
    steps = play(np.float64, procedure, steps=2, teacher=teacher)
    for phase, metrics, result, state, (g, q) in steps:
        seen.add(phase)
        assert set(LOSSES) <= result.keys()
        compare(metrics, result, state, g, q)
    assert seen == set(Phase)


# Our fields in the transcription's words, its constants written out: AdaSG (Qian et al., AAAI
# 2023), GDFQ (Xu et al., ECCV 2020) with the KL as released and as printed.
FAMILY = {
    "adasg": (
        {"method": "adasg"},
        {"alpha_ds": 0.1, "alpha_as": 0.1, "lambda_l": 0.3, "lambda_u": 0.8, "gamma": 1.0},
    ),
    "gdfq": ({"method": "gdfq"}, {"method": "gdfq", "temperature": 20.0}),
    "gdfq as printed": (
        {"method": "gdfq", "kl_reduction": "batch"},
        {"method": "gdfq", "temperature": 20.0, "kl_reduction": "batch"},
    ),
    "without L_ds": ({"method": "adadfq_without_l_ds"}, {"alpha_ds": 0.0}),
    "without L_as": ({"method": "adadfq_without_l_as"}, {"alpha_as": 0.0}),
    "without margin": (
        {"method": "adadfq_without_margin"},
        {"lambda_l": -np.inf, "lambda_u": np.inf},
    ),
    "without L_BNS": ({"method": "adadfq_without_l_bns"}, {"gamma": 0.0}),
    "fixed lambda": ({"method": "adadfq_fixed_lambda"}, {"lambda_l": 0.45, "lambda_u": 0.45}),
}


# AdaSG and the ablations are the losses of AdaDFQ with other constants; test_methods.py has each
# alone, and both forms of GDFQ's.
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "gdfq" else pytest.mark.parity) for name in FAMILY],
)
def test_step_of_the_family_in_float64(name):
    """As precise as the test above."""
    ours, theirs = FAMILY[name]
    steps = play(np.float64, "lean", 2, ours=ours, theirs=theirs, small=True)
    for _, metrics, result, state, (g, q) in steps:
        compare(metrics, result, state, g, q)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("architecture", "procedure"),
    [
        ("resnet18_x0.125", "lean"),
        pytest.param("resnet18_x0.125", "authors", marks=pytest.mark.parity),
        pytest.param("resnet50_stride3x3_x0.125", "lean", marks=pytest.mark.parity),
        pytest.param("mobilenet_v2_x0.25", "lean", marks=pytest.mark.parity),
    ],
)
def test_step_of_imagenets_networks_in_float64(procedure, architecture):
    """As precise; 7x7 stem, max-pool, projections, bottlenecks, depthwise convolutions, ReLU6.

    With few of their channels, and with the class-conditional generator, whose tables have moved
    after the first step.
    """
    # Else L_BNS is so large that rounding noise passes 1e-9.
    teacher = settled(make_teacher(architecture=architecture, size=32))
    for _, metrics, result, state, (g, q) in play(
        np.float64, procedure, 2, small=True, teacher=teacher, conditioning="batch_norm"
    ):
        compare(metrics, result, state, g, q)


def compare(metrics, result, state, g, q):
    """Losses to 1e-8 relative; parameters and ranges to 1e-9 absolute.

    G's convolution biases before a BatchNorm, which change no image, to 1e-5: their true gradient
    is 0, and Adam makes small steps of the rounding noise, other ones in every run. Of any other
    gradient it would make steps of its rate, 1e-3.
    """
    named = [name for name in LOSSES if name in result]
    assert {"l_g", "l_q", "l_bns"} <= set(named)
    for name in named:
        np.testing.assert_allclose(metrics[name], result[name].item(), rtol=1e-8, err_msg=name)
    np.testing.assert_allclose(metrics["h_prime"], result["entropy"].mean().item(), rtol=1e-8)
    ours_g, ours_q, ranges = ours_as_torch(state)
    for ours, theirs in ((ours_g, g.state_dict()), (ours_q, q.state_dict())):
        for name, value in ours.items():
            atol = 1e-5 if name in ("conv1.bias", "conv2.bias") else 1e-9
            np.testing.assert_allclose(value, theirs[name], rtol=0, atol=atol, err_msg=name)
    for name, value in torch_ranges(q).items():
        np.testing.assert_allclose(ranges[name], value, rtol=0, atol=1e-9, err_msg=name)


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
