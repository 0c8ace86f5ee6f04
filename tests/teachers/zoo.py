"""Networks of timm, torchvision and pytorchcv, read from their code: what was read, and how well.

python -m tests.teachers.zoo writes the table of adadfq_jax/teachers/README.md; it needs the
extra `zoo`.
"""

import dataclasses
import functools
import importlib
import sys
import time
import warnings

import torch

import adadfq_jax
from adadfq_jax.models.size import measure_network
from tests import ROOT

README = ROOT / "adadfq_jax" / "teachers" / "README.md"
BEGIN, END = "<!-- networks that were read -->", "<!-- end of networks that were read -->"

# By package: the smallest side in pixels that a network accepts, and its name.
_TORCHVISION = {
    "resnet18": 32,
    "resnet50": 32,
    "resnext50_32x4d": 32,
    "wide_resnet50_2": 32,
    "regnet_x_400mf": 32,
    "regnet_y_400mf": 32,
    "vgg16_bn": 32,
    "densenet121": 32,
    "googlenet": 32,
    "inception_v3": 96,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 32,
    "mnasnet1_0": 32,
    "efficientnet_b0": 32,
    "shufflenet_v2_x1_0": 32,
}
_TIMM = {
    "resnet26d": 32,
    "seresnet50": 32,
    "resnetv2_50": 32,
    "res2net50_26w_4s": 32,
    "cspresnet50": 32,
    "mobilenetv1_100": 32,
    "mobilenetv2_100": 32,
    "mobilenetv3_large_100": 32,
    "efficientnet_lite0": 32,
    "efficientnet_b0": 32,
    "tf_efficientnet_b0": 32,
    "efficientnet_es": 32,
    "tinynet_e": 32,
    "ghostnet_100": 32,
    "ghostnetv2_100": 64,
    "repvgg_a0": 32,
    "mobileone_s0": 32,
    "dla34": 32,
    "fbnetc_100": 32,
    "hardcorenas_a": 32,
    "spnasnet_100": 32,
    "semnasnet_100": 32,
    "lcnet_050": 32,
    "mixnet_s": 32,
    "rexnet_100": 32,
    "regnety_004": 32,
    "hrnet_w18_small": 32,
    "ese_vovnet19b_dw": 32,
    "selecsls42b": 32,
    "xception41": 32,
    "darknet53": 32,
    "dpn68": 32,
}
# Some that come with the extra `test`, by the module of pytorchcv.
_PYTORCHCV = {
    "resnet.resnet10": 224,
    "preresnet.preresnet10": 224,
    "seresnet.seresnet10": 224,
    "preresnet_cifar.preresnet20_cifar10": 32,
    "seresnet_cifar.seresnet20_cifar10": 32,
    "densenet_cifar.densenet40_k12_cifar10": 32,
    "mobilenetv3.mobilenetv3_small_w7d20": 224,
    "shufflenetv2.shufflenetv2_wd2": 224,
    "mobilenet.mobilenet_wd4": 224,
    "squeezenext.sqnxt23_w1": 224,
    "vgg.bn_vgg11b": 224,
}
# Of a few seconds each, with pytorchcv alone.
FAST = (
    "pytorchcv:preresnet_cifar.preresnet20_cifar10",
    "pytorchcv:mobilenetv3.mobilenetv3_small_w7d20",
    "pytorchcv:seresnet_cifar.seresnet20_cifar10",
)
REFUSED = {
    "timm:convnext_tiny": "LayerNorm",
    "timm:vit_tiny_patch16_224": "LayerNorm",
    "torchvision:squeezenet1_0": "normalises nothing",
}
GREY = "timm:resnet18 of one channel"
NETWORKS = {
    **{f"torchvision:{name}": size for name, size in _TORCHVISION.items()},
    **{f"timm:{name}": size for name, size in _TIMM.items()},
    GREY: 32,
    **{f"pytorchcv:{name}": size for name, size in _PYTORCHCV.items()},
}


def build(network):
    """A network of random weights and of statistics that are not trivial, in evaluation mode."""
    torch.manual_seed(0)
    package, _, name = network.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if network == GREY:
            module = _timm().create_model("resnet18", in_chans=1)
        elif package == "timm":
            module = _timm().create_model(name)
        elif package == "torchvision":
            settings = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            module = _torchvision().get_model(name, weights=None, **settings)
        else:
            where, _, name = name.partition(".")
            module = getattr(importlib.import_module(f"pytorchcv.models.{where}"), name)()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
                if part.affine:
                    part.weight.uniform_(0.5, 1.5)
                    part.bias.normal_(0, 0.1)
    return module.eval()


@functools.cache
def _torchvision():
    """Its models, which need none of its compiled operations; those may be for another PyTorch."""
    spec = importlib.util.find_spec("torchvision")
    try:
        torch.ops.load_library(next(iter(spec.submodule_search_locations)) + "/_C.so")
    except OSError:
        _torchvision.operations = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            _torchvision.operations.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    return importlib.import_module("torchvision.models")


def _timm():
    _torchvision()
    return importlib.import_module("timm")


@dataclasses.dataclass(frozen=True)
class Row:
    """What was read of a network."""

    network: str
    size: int
    nodes: int
    layers: int
    difference: float
    macs: int
    seconds: float


def read(network):
    """Reads a network; `from_torch` proves it."""
    began, size = time.monotonic(), NETWORKS[network]
    grey = network == GREY
    teacher = adadfq_jax.from_torch(
        build(network),
        image_size=size,
        mean=(0.5,) if grey else (0.485, 0.456, 0.406),
        std=(0.25,) if grey else (0.229, 0.224, 0.225),
    )
    measured = measure_network(teacher.module, size)
    difference = float(teacher.convention.split("at most ")[1].split()[0])
    seconds = time.monotonic() - began
    nodes = len(teacher.module.nodes)
    return Row(network, size, nodes, measured.layers, difference, measured.macs, seconds)


def table(rows):
    """The table of the documentation."""
    lines = [
        "| network | pixels | nodes | layers | largest difference | MACs |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.network} | {row.size} | {row.nodes} | {row.layers} | {row.difference:.1e} "
        f"| {row.macs:,} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(chosen):
    """Reads all networks, or those whose names hold a word, and writes the table of all."""
    rows, failed = [], []
    for network in NETWORKS:
        if chosen and not any(word in network for word in chosen):
            continue
        try:
            rows.append(read(network))
            print(rows[-1], flush=True)
        except adadfq_jax.AdaDFQError as error:
            failed.append(network)
            print(f"{network}: {error}", flush=True)
    seconds = sum(row.seconds for row in rows)
    print(f"{len(rows)} read, {len(failed)} not: {failed}; {seconds:.0f} s")
    if not chosen and not failed:
        before, _, rest = README.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main(sys.argv[1:])
