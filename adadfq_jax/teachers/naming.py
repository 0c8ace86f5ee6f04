"""How PyTorch programs name the variables of the networks that we know."""

import dataclasses
import re
from collections.abc import Callable, Mapping

from adadfq_jax.models.mobilenet_v2 import STAGE_SIZES

_LEAVES = {
    "kernel": "weight",
    "bias": "bias",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Convention:
    """One way of naming a network's variables.

    Attributes:
      name: for people.
      layer: maps one of our layers, `stage1_block1/conv1`, to its PyTorch module, `layer1.0.conv1`.
      code: what `by_code` makes the convention of again; files keep it.
    """

    name: str
    layer: Callable[[str], str]
    code: str

    def key(self, variable: str) -> str:
        """Maps `stage1_block1/conv1/kernel` to `layer1.0.conv1.weight`."""
        layer, _, leaf = variable.rpartition("/")
        return f"{self.layer(layer)}.{_LEAVES[leaf]}"


def _convention(
    name: str, code: str, outer: Mapping[str, str], inner: Callable[[int, int, str], str]
) -> Convention:
    """Makes a convention of a table for layers outside blocks and a rule for those in blocks."""

    def layer(path: str) -> str:
        if path in outer:
            return outer[path]
        stage, block, part = re.fullmatch(r"stage(\d+)_block(\d+)/(\w+)", path).groups()
        return inner(int(stage), int(block), part)

    return Convention(name, layer, code)


def layered(name: str, shortcut: str, classifier: str) -> Convention:
    """ResNets of the form `layer1.0.conv1`.

    Args:
      name: for people.
      shortcut: the module of a projection shortcut: `shortcut` or `downsample`.
      classifier: the dense layer: `linear` or `fc`.
    """

    def inner(stage: int, block: int, part: str) -> str:
        part = {"shortcut_conv": f"{shortcut}.0", "shortcut_norm": f"{shortcut}.1"}.get(part, part)
        return f"layer{stage}.{block - 1}.{part.replace('norm', 'bn')}"

    outer = {"stem_conv": "conv1", "stem_norm": "bn1", "classifier": classifier}
    return _convention(name, f"layered {shortcut} {classifier}", outer, inner)


def pytorchcv_resnet(stem: str) -> Convention:
    """pytorchcv's ResNets.

    Args:
      stem: the module of the stem: `features.init_block`, or with `.conv` for ImageNet's.
    """

    def inner(stage: int, block: int, part: str) -> str:
        kind, index = re.fullmatch(r"(?:shortcut_)?(conv|norm)(\d?)", part).groups()
        unit = f"body.conv{index}" if index else "identity_conv"
        return f"features.stage{stage}.unit{block}.{unit}.{_conv_or_bn(kind)}"

    outer = {"stem_conv": f"{stem}.conv", "stem_norm": f"{stem}.bn", "classifier": "output"}
    return _convention("pytorchcv", f"pytorchcv {stem}", outer, inner)


def _conv_or_bn(kind: str) -> str:
    return {"conv": "conv", "norm": "bn"}[kind]


def _pytorchcv_mobilenet(stage: int, block: int, part: str) -> str:
    # Its stages begin where the stride is 2: our 4 and 5 are one, and so are 6 and 7.
    if stage in (5, 7):
        block += STAGE_SIZES[stage - 2]
    stage = (1, 2, 3, 4, 4, 5, 5)[stage - 1]
    role, kind = part.split("_")
    index = ("expand", "depthwise", "project").index(role) + 1
    return f"features.stage{stage}.unit{block}.conv{index}.{_conv_or_bn(kind)}"


def _torchvision_mobilenet(stage: int, block: int, part: str) -> str:
    index = sum(STAGE_SIZES[: stage - 1]) + block
    roles = ("depthwise", "project") if stage == 1 else ("expand", "depthwise", "project")
    role, kind = part.split("_")
    position = roles.index(role)
    if role == "project":  # not grouped with its normalisation, unlike those before
        return f"features.{index}.conv.{position + (kind == 'norm')}"
    return f"features.{index}.conv.{position}.{int(kind == 'norm')}"


def _timm_mobilenet(stage: int, block: int, part: str) -> str:
    names = (
        {"depthwise": "conv_dw", "project": "conv_pw"}
        if stage == 1
        else {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
    )
    role, kind = part.split("_")
    name = f"bn{list(names).index(role) + 1}" if kind == "norm" else names[role]
    return f"blocks.{stage - 1}.{block - 1}.{name}"


PYTORCHCV_MOBILENET = _convention(
    "pytorchcv",
    "pytorchcv mobilenet",
    {
        "stem_conv": "features.init_block.conv",
        "stem_norm": "features.init_block.bn",
        "head_conv": "features.final_block.conv",
        "head_norm": "features.final_block.bn",
        "classifier": "output",
    },
    _pytorchcv_mobilenet,
)
_LAST = sum(STAGE_SIZES) + 1
TORCHVISION_MOBILENET = _convention(
    "torchvision",
    "torchvision mobilenet",
    {
        "stem_conv": "features.0.0",
        "stem_norm": "features.0.1",
        "head_conv": f"features.{_LAST}.0",
        "head_norm": f"features.{_LAST}.1",
        "classifier": "classifier.1",
    },
    _torchvision_mobilenet,
)
TIMM_MOBILENET = _convention(
    "timm",
    "timm mobilenet",
    {
        "stem_conv": "conv_stem",
        "stem_norm": "bn1",
        "head_conv": "conv_head",
        "head_norm": "bn2",
        "classifier": "classifier",
    },
    _timm_mobilenet,
)

# Which convention a key speaks for, by the form that its network's blocks have in it.
FORMS = {
    "layered ResNet": re.compile(r"layer(?P<stage>\d+)\.(?P<block>\d+)\.(?:conv|bn)\d\."),
    "pytorchcv ResNet": re.compile(r"features\.stage(?P<stage>\d+)\.unit(?P<block>\d+)\.body\."),
    "pytorchcv MobileNetV2": re.compile(r"features\.stage\d+\.unit\d+\.conv\d\."),
    "torchvision MobileNetV2": re.compile(r"features\.\d+\.conv\.\d"),
    "timm MobileNetV2": re.compile(r"blocks\.\d+\.\d+\.conv_(?:pw|dw|pwl)\."),
}
# What the classifier is called in each form.
HEADS = {
    "layered ResNet": ("linear", "fc"),
    "pytorchcv ResNet": ("output",),
    "pytorchcv MobileNetV2": ("output",),
    "torchvision MobileNetV2": ("classifier.1",),
    "timm MobileNetV2": ("classifier",),
}
MOBILENETS = {
    "pytorchcv MobileNetV2": PYTORCHCV_MOBILENET,
    "torchvision MobileNetV2": TORCHVISION_MOBILENET,
    "timm MobileNetV2": TIMM_MOBILENET,
}


# A graph's layers have the names of the modules that they come from, `layer1.0.conv1`.
MODULES = Convention("the module's own", lambda layer: layer, "modules")


def by_code(code: str) -> Convention | None:
    """Returns the convention of a code, or None where there is none."""
    if code == MODULES.code:
        return MODULES
    match code.split():
        case ["layered", ("shortcut" | "downsample") as shortcut, ("linear" | "fc") as classifier]:
            return layered("layered", shortcut, classifier)
        case ["pytorchcv", ("features.init_block" | "features.init_block.conv") as stem]:
            return pytorchcv_resnet(stem)
    return next((known for known in MOBILENETS.values() if known.code == code), None)


def usual_convention(architecture: str) -> Convention:
    """Returns how the originals of a network name their variables."""
    if architecture.startswith("mobilenet"):
        pytorchcv = "pytorchcv" in architecture
        return PYTORCHCV_MOBILENET if pytorchcv else TORCHVISION_MOBILENET
    if "_cifar" in architecture or "_3x3" in architecture:
        return layered("the original CIFAR ResNet", "shortcut", "linear")
    return layered("torchvision or timm", "downsample", "fc")
