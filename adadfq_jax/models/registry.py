"""The networks by name, and what can be said of one without running it."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.models.graph import checked_network, is_network_name
from adadfq_jax.models.layers import COLOURS, input_shape
from adadfq_jax.models.mobilenet_v2 import STRIDES, MobileNetV2, rounded_widths, truncated_widths
from adadfq_jax.models.resnet import ResNet
from adadfq_jax.models.resnet_cifar import OptionA, ResNetCifar


def initial_variables(
    module: nn.Module, image_size: int, key: jax.Array | None = None
) -> dict[str, Any]:
    """Returns a classifier's variable collections (see `layers`), or their shapes.

    Args:
      module: the classifier.
      image_size: side of its images in pixels.
      key: random key of the initial parameters; without it, nothing is computed and the leaves
        are `jax.ShapeDtypeStruct`s, in dicts that others read too.
    """
    shape = (1, *input_shape(module, image_size))
    if key is None:
        return _shapes(module, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
    return jax.jit(module.init)(key, jnp.zeros(shape))


# Kept, since many ask for the shapes of one network, and each time it would be traced again.
@functools.lru_cache(maxsize=32)
def _shapes(module: nn.Module, images: jax.ShapeDtypeStruct) -> dict[str, Any]:
    return jax.eval_shape(module.init, jax.random.key(0), images)


def variable_shapes(module: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a classifier's parameters and statistics by name, `params/...`."""
    shapes = initial_variables(module, image_size)
    return {
        variable: leaf.shape
        for variable, leaf in flax.traverse_util.flatten_dict(shapes, sep="/").items()
        if variable.startswith(("params/", "batch_stats/"))
    }


# What follows `resnet20_cifar` where shortcuts have no parameters.
OPTION_A = {
    "": OptionA(),
    "_padend": OptionA(pad_end=True),
    "_avgpool": OptionA(average=True),
    "_avgpool_padend": OptionA(average=True, pad_end=True),
}

# By blocks a stage n: 6n + 2 and, of bottlenecks, 9n + 2. He et al.'s deepest has n = 200.
CIFAR_DEPTHS = {n: 6 * n + 2 for n in range(1, 201)}

CIFAR_BOTTLENECK_DEPTHS = {n: 9 * n + 2 for n in range(1, 201)}

# What follows `mobilenet_v2` where no weight shows the strides.
MOBILENET_STRIDES = {
    "": STRIDES,
    "_cifar": (1, 1, 1, *STRIDES[3:]),
    "_cifar_stem": (1, *STRIDES[1:]),
}

_BOTTLENECK_STRIDES = {"_stride1x1": True, "_stride3x3": False}  # whether on the first 1x1

BASIC_DEPTHS = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}  # by stage sizes

BOTTLENECK_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}

_SHOWN = 5  # names in a message


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A family of networks that differ in width and number of classes.

    Attributes:
      construct: takes `widths` and `classes`, returns the module.
      widths: channels of its stages for a width multiplier.
      image_size: side of the images that it is by definition for, or None where that is open.
    """

    construct: Callable[..., nn.Module]
    widths: Callable[[float], tuple[int, ...]]
    image_size: int | None = None


def _exact_widths(*standard: int) -> Callable[[float], tuple[int, ...]]:
    def widths(multiplier: float) -> tuple[int, ...]:
        channels = [multiplier * width for width in standard]
        if any(count < 1 or count != int(count) for count in channels):
            raise ConfigError(
                f"a width multiplier of {multiplier:g} makes no whole numbers of the channels "
                f"{', '.join(map(str, standard))}."
            )
        return tuple(map(int, channels))

    return widths


def _architectures() -> dict[str, Architecture]:
    known = {}
    cifar = _exact_widths(16, 32, 64)
    for n, depth in CIFAR_DEPTHS.items():
        for suffix, option_a in {"_projection": None, **OPTION_A}.items():
            known[f"resnet{depth}_cifar{suffix}"] = Architecture(
                functools.partial(ResNetCifar, stage_sizes=(n, n, n), option_a=option_a),
                cifar,
                image_size=32,
            )
    for n, depth in CIFAR_BOTTLENECK_DEPTHS.items():
        small = functools.partial(ResNet, stage_sizes=(n, n, n), stem_size=3, pool=False)
        for suffix, stride_first in _BOTTLENECK_STRIDES.items():
            known[f"resnet{depth}_cifar{suffix}"] = Architecture(
                functools.partial(small, stride_first=stride_first), cifar, image_size=32
            )
    resnet = _exact_widths(64, 128, 256, 512)
    for sizes, depth in BASIC_DEPTHS.items():
        basic = functools.partial(ResNet, stage_sizes=sizes)
        small = functools.partial(basic, stem_size=3)
        known[f"resnet{depth}"] = Architecture(basic, resnet)
        known[f"resnet{depth}_3x3"] = Architecture(functools.partial(small, pool=False), resnet)
        known[f"resnet{depth}_3x3_pool"] = Architecture(small, resnet)
    for sizes, depth in BOTTLENECK_DEPTHS.items():
        for suffix, stride_first in _BOTTLENECK_STRIDES.items():
            known[f"resnet{depth}{suffix}"] = Architecture(
                functools.partial(ResNet, stage_sizes=sizes, stride_first=stride_first), resnet
            )
    for suffix, strides in MOBILENET_STRIDES.items():
        known[f"mobilenet_v2{suffix}"] = Architecture(
            functools.partial(MobileNetV2, strides=strides),
            rounded_widths,
            image_size=32 if suffix else None,
        )
    for name, expand_first in (("mobilenet_v2", True), ("mobilenet_v2b", False)):
        known[f"{name}_pytorchcv"] = Architecture(
            functools.partial(MobileNetV2, expand_first=expand_first, dense_classifier=False),
            truncated_widths,
        )
    return known


ARCHITECTURES: Mapping[str, Architecture] = _architectures()


def full_name(base: str, multiplier: float) -> str:
    """Returns a network's name: one of `ARCHITECTURES`, and its width where not the standard."""
    return base if multiplier == 1 else f"{base}_x{str(float(multiplier)).removesuffix('.0')}"


def parse(name: str) -> tuple[Architecture, float]:
    """Returns what a name stands for: (architecture, width multiplier).

    Raises:
      ConfigError: the name is unknown, or not in its one spelling.
    """
    match = re.fullmatch(r"(?P<base>.+?)(?:_x(?P<width>\d+(?:\.\d+)?))?", name)
    base, width = (match["base"], float(match["width"] or 1)) if match else (name, 1.0)
    if base not in ARCHITECTURES:
        raise ConfigError(f"unknown network {name!r}: {_hint(base)}")
    if not 0.01 <= width <= 16:
        raise ConfigError(f"the width multiplier of {name!r} must be between 0.01 and 16.")
    if name != full_name(base, width):
        raise ConfigError(f"{name!r} is written {full_name(base, width)!r}.")
    return ARCHITECTURES[base], width


def _hint(base: str) -> str:
    # `resnet50` leaves open what `resnet50_stride1x1` says; the networks of large images first.
    fuller = sorted(
        (known for known in ARCHITECTURES if known.startswith(f"{base}_")),
        key=lambda known: "_cifar" in known,
    )
    if fuller:
        others = " or others" if len(fuller) > _SHOWN else ""
        return f"did you mean {' or '.join(fuller[:_SHOWN])}{others}?"
    if depth := re.match(r"resnet(\d+)_cifar", base):
        nearby = sorted(CIFAR_DEPTHS.values(), key=lambda known: abs(known - int(depth[1])))[:2]
        return (
            "CIFAR ResNets have a depth of 6n + 2, or 9n + 2 of bottlenecks; did you mean "
            f"{' or '.join(f'resnet{known}_cifar' for known in nearby)}?"
        )
    return nearest(base, ARCHITECTURES)


def build(architecture: str, classes: int) -> nn.Module:
    """Constructs a classifier by name; the same module serves teacher and student.

    Args:
      architecture: one of `ARCHITECTURES`, with or without a width multiplier.
      classes: number of classes C.

    Raises:
      ConfigError: the name is unknown, or its width leaves no channels.
    """
    family, multiplier = parse(architecture)
    widths = family.widths(multiplier)
    if min(widths) < 1:
        raise ConfigError(f"{architecture!r} is too narrow: it has layers without channels.")
    return family.construct(widths=widths, classes=classes)


def restore(
    architecture: str, classes: int, image_size: int, channels: int, graph: Any = None
) -> nn.Module:
    """Constructs the classifier that a file describes.

    Args:
      architecture: one of `ARCHITECTURES`, or the name of a network that the graph defines.
      classes: number of classes C.
      image_size: side of its images in pixels.
      channels: of its images.
      graph: the nodes as JSON holds them, where the file has them.

    Raises:
      ConfigError: the name is unknown and there is no graph, or that is damaged, or the network is
        of other images.
    """
    if graph is None or is_registered(architecture):
        if channels != COLOURS:
            raise ConfigError(
                f"{architecture!r} takes images of {COLOURS} channels, but mean and std have "
                f"{channels} numbers."
            )
        return build(architecture, classes)
    if not is_network_name(architecture):
        raise ConfigError(f"{architecture!r:.80} cannot be a network's name.")
    return checked_network(graph, classes, image_size, channels)


def is_registered(architecture: str) -> bool:
    """Tells whether a name is one of the networks of this package."""
    try:
        parse(architecture)
    except ConfigError:
        return False
    return True


def default_image_size(architecture: str) -> int | None:
    """Returns the side of the images that a network is by definition for; None where it is open.

    Raises:
      ConfigError: the name is unknown.
    """
    return parse(architecture)[0].image_size
