"""The opponents of `adadfq benchmark`: the training step of `reference/` in PyTorch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import torch

from adadfq_jax.game.methods import METHODS
from adadfq_jax.game.step import Game
from adadfq_jax.models.mobilenet_v2 import MobileNetV2
from adadfq_jax.models.network import flatten
from adadfq_jax.models.resnet import ResNet
from adadfq_jax.models.resnet_cifar import ResNetCifar
from adadfq_jax.reference import game as reference
from adadfq_jax.reference import networks

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_WARM_UP = 2


def serves(module: Any) -> bool:
    """Tells whether `reference/` has a PyTorch twin of a classifier."""
    return isinstance(module, ResNetCifar | ResNet) or (
        isinstance(module, MobileNetV2) and module.dense_classifier
    )


def reference_method(method: str) -> str | None:
    """Returns the method of `reference` with the same losses as a method; None if there is none.

    AdaSG and the ablations have AdaDFQ's losses with other constants, so a step costs the same.
    """
    losses = METHODS[method].generator_loss, METHODS[method].student_loss
    for known in reference.METHODS:
        if losses == (METHODS[known].generator_loss, METHODS[known].student_loss):
            return known
    return None


def twin(module: Any, variables: Any = None) -> networks.Classifier:
    """Returns the PyTorch twin of a classifier that `serves` accepts.

    Args:
      module: the classifier.
      variables: its variables, which the twin takes over; without, its weights are random.
    """
    made = _random_twin(module)
    if variables is not None:
        weights = {_key(name): _to_torch(array) for name, array in flatten(variables).items()}
        made.load_state_dict(weights, strict=False)
    return made


def _random_twin(module: Any) -> networks.Classifier:
    if isinstance(module, MobileNetV2):
        return networks.MobileNetV2(module.widths, module.classes, expand_first=module.expand_first)
    own = {"stem_size": 3, "pool": False, "stride_first": None}
    shape = {name: getattr(module, name, value) for name, value in own.items()}
    option_a = getattr(module, "option_a", None)
    shape |= {"projection": True} if option_a is None else dataclasses.asdict(option_a)
    return networks.ResNet(module.stage_sizes, module.widths, module.classes, **shape)


def opponents(
    game: Game, config: ml_collections.ConfigDict, variables: Any, platform: str
) -> dict[str, Callable[[], None]]:
    """Sets up a calibrated training step for each procedure of the reference.

    Args:
      game: our game; PyTorch's networks and images have the same shapes.
      config: the run's configuration, for method, batch size and bit-widths.
      variables: the teacher's variables, which PyTorch's teacher takes over.
      platform: where JAX runs; on "gpu" PyTorch runs there as well.

    Returns:
      By procedure, a function that takes one step of play and waits for its end.
    """
    device = "cuda" if platform == "gpu" else "cpu"
    bits = config.quant.weight_bits, config.quant.activation_bits
    method = reference_method(config.game.method)
    random = np.random.default_rng(0)
    z = torch.from_numpy(random.standard_normal((config.batch_size, 100), np.float32)).to(device)
    y = torch.from_numpy(random.integers(game.network.classes, size=config.batch_size))
    y = y.to(device)

    def ready(procedure):
        shape = game.network
        teacher = twin(shape, variables)
        conditional = game.generator.conditioning == "batch_norm"
        generator = networks.Generator(
            shape.classes, game.generator.image_size, conditional=conditional
        ).to(device)
        teacher = teacher.to(device)
        student = teacher.quantized(bits)
        match = reference.Game(teacher, student, generator, procedure=procedure, method=method)

        def step(phase="play"):
            match.step(z, y, phase)
            if device == "cuda":
                torch.cuda.synchronize()

        for phase in ("calibrate", "play"):
            for _ in range(_WARM_UP):
                step(phase)
        return step

    return {procedure: ready(procedure) for procedure in reference.PROCEDURES}


def _key(name: str) -> str:
    """Returns PyTorch's name: `layer1.1.conv1.weight` for `params/stage1_block2/conv1/kernel`."""
    *layers, leaf = name.split("/")[1:]
    prefix = ""
    if len(layers) == 2:
        stage, block = layers[0].removeprefix("stage").split("_block")
        prefix = f"layer{stage}.{int(block) - 1}."
    layer = {"stem_conv": "conv1", "stem_norm": "bn1", "classifier": "linear"}.get(
        layers[-1], layers[-1].replace("norm", "bn")
    )
    return f"{prefix}{layer}.{_LEAVES.get(leaf, leaf)}"


def _to_torch(array: np.ndarray) -> torch.Tensor:
    """Converts an array; HWIO kernels become OIHW, dense kernels (out, in)."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    return torch.from_numpy(array.transpose(axes).copy())
