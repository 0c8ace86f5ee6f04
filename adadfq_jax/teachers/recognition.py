"""Which network a PyTorch state dict holds, told from the names and shapes of its entries."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping

from adadfq_jax.errors import ConfigError, TeacherError, nearest
from adadfq_jax.models.mobilenet_v2 import STAGE_SIZES
from adadfq_jax.models.registry import (
    ARCHITECTURES,
    BASIC_DEPTHS,
    BOTTLENECK_DEPTHS,
    CIFAR_BOTTLENECK_DEPTHS,
    CIFAR_DEPTHS,
    MOBILENET_STRIDES,
    OPTION_A,
    build,
    full_name,
)
from adadfq_jax.teachers import naming

Shapes = Mapping[str, tuple[int, ...]]

_FROM_CODE = (
    "any network with BatchNorm is read from its code, convert --network=FILE.py:FUNCTION or "
    "adadfq_jax.from_torch(module, image_size=..., mean=..., std=...)"
)

# What makes other well-known networks known.
_OTHERS = {
    "a Vision Transformer": r"(?:cls_token|class_token|patch_embed\..*)",
    "a DenseNet": r"features\.denseblock\d+\..*",
    "a VGG or AlexNet": r"(?:features\.\d+|classifier\.6)\.weight",
    "an EfficientNet or MobileNetV3": r"(?:_conv_stem|_blocks\.\d+|features\.\d+\.block)\..*",
    "a ConvNeXt": r"stages?\.\d+\.(?:blocks\.)?\d+\.(?:dwconv|conv_dw)\..*",
    "a CIFAR MobileNetV2 or MobileNet": r"layers\.\d+\.(?:conv|bn)\d\..*",
    "an Inception": r"(?:Mixed_|inception).*",
    "a ShuffleNetV2": r"stage\d\.\d+\.branch\d\..*",
}


@dataclasses.dataclass(frozen=True)
class Recognised:
    """What a state dict's names and shapes say.

    Attributes:
      convention: how its variables are named.
      architectures: the networks that it may hold, more than one where names and shapes are equal.
      question: what would tell those apart, and how to say it; empty for one.
      classes: number of classes C.
    """

    convention: naming.Convention
    architectures: tuple[str, ...]
    question: str
    classes: int


def recognise(shapes: Shapes) -> Recognised:
    """Tells a network from the names and shapes of its state dict.

    Args:
      shapes: PyTorch's names and shapes, without prefixes.

    Raises:
      TeacherError: no known network looks like this; the message is a predicate, "looks like ...",
        to follow the file's name.
    """
    _require_batch_norm(shapes)
    votes = Counter(
        form for form, pattern in naming.FORMS.items() for key in shapes if pattern.match(key)
    )
    if not votes:
        for network, pattern in _OTHERS.items():
            if any(re.fullmatch(pattern, key) for key in shapes):
                raise TeacherError(f"looks like {network}, which is not known{_known()}")
        some = ", ".join(sorted(shapes)[:4])
        raise TeacherError(f"looks like no known network (keys such as {some}){_known()}")
    form = votes.most_common(1)[0][0]
    if form in naming.MOBILENETS:
        return _mobilenet(form, shapes)
    return _resnet(form, shapes)


def _known() -> str:
    return (
        ": the known ones are CIFAR ResNets, ResNets and MobileNetV2 as written by their original "
        f"authors, torchvision, timm or pytorchcv; {_FROM_CODE}."
    )


def _require_batch_norm(shapes: Shapes) -> None:
    if any(key.endswith((".running_mean", ".running_var")) for key in shapes):
        return
    # Only a normalisation has a weight with one dimension.
    if any(key.endswith(".weight") and len(shape) == 1 for key, shape in shapes.items()):
        raise TeacherError(
            "has no BatchNorm statistics (no running_mean, no running_var), and data-free "
            "quantization needs them: they are all it knows about the images."
        )
    raise TeacherError(
        "is a network without BatchNorm, and data-free quantization needs BatchNorm statistics: "
        "they are all it knows about the images."
    )


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise TeacherError(f"has no key {key!r}; {nearest(key, shapes)}")
    return shapes[key]


def _channels(shapes: Shapes, key: str) -> int:
    shape = _shape(shapes, key)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise TeacherError(
            f"has a {key!r} of shape {shape}, which is not that of a square convolution."
        )
    return shape[0]


def _resnet(form: str, shapes: Shapes) -> Recognised:
    counts: dict[int, int] = {}
    for key in shapes:
        if match := naming.FORMS[form].match(key):
            stage, block = int(match["stage"]), int(match["block"])
            counts[stage] = max(counts.get(stage, 0), block + (form == "layered ResNet"))
    sizes = tuple(counts[stage] for stage in sorted(counts))
    convention, standard = _resnet_convention(form, shapes, len(sizes))
    stem = _shape(shapes, convention.key("stem_conv/kernel"))
    width = _channels(shapes, convention.key("stem_conv/kernel"))
    bottleneck = convention.key("stage1_block1/conv3/kernel") in shapes
    projection = any(
        convention.key(f"stage{stage}_block1/shortcut_conv/kernel") in shapes for stage in counts
    )
    base, question, answers = None, "", {}
    match len(sizes), stem[-1], bottleneck:
        case 3, 3, False if len(set(sizes)) == 1 and sizes[0] in CIFAR_DEPTHS:
            base = 16
            name = f"resnet{CIFAR_DEPTHS[sizes[0]]}_cifar"
            if projection:
                answers = {f"{name}_projection": ""}
            else:
                question = "what its shortcuts, which have no parameters, do"
                answers = {f"{name}{kind}": _describe(kind) for kind in OPTION_A}
        case 3, 3, True if len(set(sizes)) == 1 and sizes[0] in CIFAR_BOTTLENECK_DEPTHS:
            base = 16
            name = f"resnet{CIFAR_BOTTLENECK_DEPTHS[sizes[0]]}_cifar"
            question, answers = _ask_for_the_stride(name)
        case 4, 3, False if sizes in BASIC_DEPTHS:
            base = 64
            name = f"resnet{BASIC_DEPTHS[sizes]}_3x3"
            answers = {name: "no"}
            if not standard:
                question = "whether a max-pool follows its stem"
                answers[f"{name}_pool"] = "yes"
        case 4, 7, False if sizes in BASIC_DEPTHS:
            base = 64
            answers = {f"resnet{BASIC_DEPTHS[sizes]}": ""}
        case 4, 7, True if sizes in BOTTLENECK_DEPTHS:
            base = 64
            name = f"resnet{BOTTLENECK_DEPTHS[sizes]}"
            question, answers = _ask_for_the_stride(name)
    if base is None:
        raise TeacherError(
            f"looks like a ResNet that is not known ({convention.name} keys): {len(sizes)} stages "
            f"of {', '.join(map(str, sizes))} {'bottlenecks' if bottleneck else 'basic blocks'} "
            f"after a {stem[-1]}x{stem[-1]} convolution; {_FROM_CODE}."
        )
    if stem[1] != 3:
        raise TeacherError(f"takes images of {stem[1]} channels; only 3 are known; {_FROM_CODE}.")
    answers = {full_name(name, width / base): answer for name, answer in answers.items()}
    return _recognised(shapes, convention, question, answers)


def _describe(kind: str) -> str:
    """Says what a shortcut of option A does, by what its network's name ends in."""
    option_a = OPTION_A[kind]
    pixels = "average 2x2 pixels" if option_a.average else "take every second pixel"
    where = "at the end" if option_a.pad_end else "on both sides"
    whose = "" if kind else ", as akamaster/pytorch_resnet_cifar10"
    return f"{pixels}, add zero channels {where}{whose}"


def _ask_for_the_stride(name: str) -> tuple[str, dict[str, str]]:
    """Returns the question about bottlenecks, and its answers."""
    return "which convolution of a bottleneck has the stride", {
        f"{name}_stride1x1": "the first 1x1",
        f"{name}_stride3x3": "the 3x3, as torchvision's and timm's",
    }


_MOBILENET_ANSWERS = {
    "": "stem and stages, as torchvision's and timm's for 224 pixels",
    "_cifar": "neither the stem nor the second stage, as chenyaofo/pytorch-cifar-models",
    "_cifar_stem": "the stages but not the stem",
}


def _recognised(
    shapes: Shapes, convention: naming.Convention, question: str, answers: Mapping[str, str]
) -> Recognised:
    """Makes the answer of `recognise` of what each of the possible networks would answer."""
    names = tuple(answers)
    if len(names) > 1:
        said = " or ".join(f"{name} ({answer})" for name, answer in answers.items())
        question += f": give architecture, {said}"
    return Recognised(convention, names, question, _classes(shapes, convention, names[0]))


def _resnet_convention(form: str, shapes: Shapes, stages: int) -> tuple[naming.Convention, bool]:
    """Returns a convention, and whether it fixes a 3x3 stem's pooling."""
    if form == "pytorchcv ResNet":
        imagenet = any(key.startswith("features.init_block.conv.conv.") for key in shapes)
        return naming.pytorchcv_resnet("features.init_block" + ".conv" * imagenet), False
    classifier = "fc" if "fc.weight" in shapes else "linear"
    shortcut = {"fc": "downsample", "linear": "shortcut"}[classifier]
    for name in ("shortcut", "downsample"):
        if any(re.match(rf"layer\d+\.0\.{name}\.", key) for key in shapes):
            shortcut = name
    original = classifier == "linear" and shortcut == "shortcut"
    if original:
        name = "the original CIFAR ResNet" if stages == 3 else "the 3x3-stem CIFAR ResNet"
    else:
        name = "torchvision or timm"
    return naming.layered(name, shortcut, classifier), original


def _mobilenet(form: str, shapes: Shapes) -> Recognised:
    convention = naming.MOBILENETS[form]
    first_blocks = [f"stage{stage}_block1" for stage in range(1, len(STAGE_SIZES) + 1)]
    layers = ["stem_conv", *(f"{block}/project_conv" for block in first_blocks), "head_conv"]
    widths = tuple(_channels(shapes, convention.key(f"{layer}/kernel")) for layer in layers)
    base = "mobilenet_v2"
    if convention is naming.PYTORCHCV_MOBILENET:
        expands = convention.key("stage1_block1/expand_conv/kernel") in shapes
        base = "mobilenet_v2_pytorchcv" if expands else "mobilenet_v2b_pytorchcv"
    multiplier = _multiplier(widths, ARCHITECTURES[base].widths)
    if multiplier is None:
        raise TeacherError(
            f"looks like {base} with unusual widths, which no multiplier gives: "
            f"{', '.join(map(str, widths))}; {_FROM_CODE}."
        )
    answers = {full_name(base, multiplier): ""}
    question = ""
    if base == "mobilenet_v2":  # pytorchcv has it for large images alone
        question = "which layers have a stride"
        answers = {
            full_name(f"{base}{kind}", multiplier): _MOBILENET_ANSWERS[kind]
            for kind in MOBILENET_STRIDES
        }
    return _recognised(shapes, convention, question, answers)


def _classes(shapes: Shapes, convention: naming.Convention, architecture: str) -> int:
    """Returns the number of classes, and makes sure that such a network can be built."""
    key = convention.key("classifier/kernel")
    shape = _shape(shapes, key)
    if not shape or shape[0] < 1:
        raise TeacherError(f"has a classifier {key!r} of shape {shape}, without classes.")
    try:
        build(architecture, shape[0])
    except ConfigError as error:
        raise TeacherError(f"looks like a network of an unusual width: {error}") from error
    return shape[0]


def _multiplier(widths: tuple[int, ...], rule: Callable[[float], tuple[int, ...]]) -> float | None:
    """Returns the width multiplier of some channels: of several, the one commonly written."""
    common = (1.0, 0.5, 0.75, 0.25, 0.35, 1.4, 1.3)
    every = (round(0.01 * hundredths, 2) for hundredths in range(1, 401))
    return next((value for value in (*common, *every) if rule(value) == widths), None)
