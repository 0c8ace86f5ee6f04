"""Teacher files: read safely, recognised, refused."""

import importlib
import itertools
import json
import os
import pickle
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from adadfq_jax import load_teacher, save_teacher
from adadfq_jax.errors import ConfigError, TeacherError
from adadfq_jax.teachers.convert import convert
from adadfq_jax.teachers.normalisation import NORMALISATIONS, parse_normalisation
from adadfq_jax.teachers.stated import Stated
from tests import torch_networks as nets
from tests.conftest import make_teacher

MEAN, STD = NORMALISATIONS["cifar10"]
NORMALISATION = {"mean": MEAN, "std": STD}


def pytorchcv(module, name):
    """A network of the package itself; unlike its index of all networks, without torchvision."""
    return lambda: getattr(importlib.import_module(f"pytorchcv.models.{module}"), name)()


def case(expected, make, size, architecture=None, slow=False):
    marks = [pytest.mark.networks] if slow else []
    return pytest.param(expected, make, size, architecture, marks=marks)


ORIGINALS = {
    "original": case("resnet20_cifar", lambda: nets.original_cifar(3), 32, "resnet20_cifar"),
    **{
        f"option A {name}": case(
            f"resnet8_cifar_{name}",
            lambda kind=kind: nets.original_cifar(1, option_a=kind),
            32,
            f"resnet8_cifar_{name}",
        )
        for name, kind in {
            "padend": (nets.subsample, 0),
            "avgpool": (nets.average, 0.5),
            "avgpool_padend": (nets.average, 0),
        }.items()
    },
    "original, projections": case(
        "resnet20_cifar_projection", lambda: nets.original_cifar(3, "shortcut", 100), 32
    ),
    "original, downsample": case(
        "resnet8_cifar_projection", lambda: nets.original_cifar(1, "downsample"), 32
    ),
    "original, fc": case(
        "resnet8_cifar_x2",
        lambda: nets.original_cifar(1, width=32, classifier="fc"),
        32,
        "resnet8_cifar_x2",
    ),
    "original 110": case(
        "resnet110_cifar", lambda: nets.original_cifar(18), 32, "resnet110_cifar", slow=True
    ),
    "3x3 stem": case("resnet18_3x3", nets.kuangliu, 32),
    "3x3 stem, narrow": case("resnet18_3x3_x0.25", lambda: nets.kuangliu(width=16), 32, slow=True),
    "3x3 stem 34": case("resnet34_3x3", lambda: nets.kuangliu((3, 4, 6, 3), 100), 32, slow=True),
    "3x3 stem, fc": case(
        "resnet18_3x3_x0.25",
        lambda: nets.ResNet((2, 2, 2, 2), 16, 7, 3, False),
        32,
        "resnet18_3x3_x0.25",
    ),
    "3x3 stem, pooled": case(
        "resnet18_3x3_pool_x0.25",
        lambda: nets.ResNet((2, 2, 2, 2), 16, 7, 3, True),
        32,
        "resnet18_3x3_pool_x0.25",
    ),
    "torchvision resnet18": case("resnet18", lambda: nets.ResNet((2, 2, 2, 2)), 96),
    "torchvision resnet34": case(
        "resnet34", lambda: nets.ResNet((3, 4, 6, 3), classes=1000), 224, slow=True
    ),
    "torchvision resnet50": case(
        "resnet50_stride3x3",
        lambda: nets.ResNet((3, 4, 6, 3), classes=1000, stride_first=False),
        224,
        "resnet50_stride3x3",
    ),
    "torchvision resnet101": case(
        "resnet101_stride3x3",
        lambda: nets.ResNet((3, 4, 23, 3), stride_first=False),
        224,
        "resnet101_stride3x3",
        slow=True,
    ),
    "torchvision keys, Caffe strides": case(
        "resnet50_stride1x1_x0.25",
        lambda: nets.ResNet((3, 4, 6, 3), 16, stride_first=True),
        64,
        "resnet50_stride1x1_x0.25",
        slow=True,
    ),
    "original, deeper": case(
        "resnet14_cifar", lambda: nets.original_cifar(2), 32, "resnet14_cifar"
    ),
    "torchvision mobilenet": case(
        "mobilenet_v2", nets.TorchvisionMobileNetV2, 224, "mobilenet_v2", slow=True
    ),
    "torchvision mobilenet 0.75": case(
        "mobilenet_v2_x0.75",
        lambda: nets.TorchvisionMobileNetV2(10, 0.75),
        96,
        "mobilenet_v2_x0.75",
        slow=True,
    ),
    **{
        f"torchvision keys, strides {strides}": case(
            f"mobilenet_v2{kind}_x0.5",
            lambda strides=strides: nets.TorchvisionMobileNetV2(10, 0.5, strides),
            32,
            f"mobilenet_v2{kind}_x0.5",
        )
        for kind, strides in {"_cifar": (1, 1), "_cifar_stem": (1, 2)}.items()
    },
    "timm mobilenet 0.5": case(
        "mobilenet_v2_x0.5", lambda: nets.TimmMobileNetV2(10, 0.5), 96, "mobilenet_v2_x0.5"
    ),
    "timm mobilenet 1.4": case(
        "mobilenet_v2_x1.4",
        lambda: nets.TimmMobileNetV2(10, 1.4),
        64,
        "mobilenet_v2_x1.4",
        slow=True,
    ),
    "pytorchcv bottlenecks of depth 9n + 2": case(
        "resnet164_cifar_stride3x3",
        pytorchcv("resnet_cifar", "resnet164bn_cifar10"),
        32,
        "resnet164_cifar_stride3x3",
        slow=True,
    ),
    "bottlenecks of depth 9n + 2": case(
        "resnet11_cifar_stride1x1",
        lambda: nets.ResNet((1, 1, 1), 16, 10, 3, False, stride_first=True),
        32,
        "resnet11_cifar_stride1x1",
    ),
    "pytorchcv resnet20_cifar10": case(
        "resnet20_cifar_projection", pytorchcv("resnet_cifar", "resnet20_cifar10"), 32
    ),
    "pytorchcv resnet56_cifar100": case(
        "resnet56_cifar_projection", pytorchcv("resnet_cifar", "resnet56_cifar100"), 32, slow=True
    ),
    "pytorchcv resnet110_cifar10": case(
        "resnet110_cifar_projection", pytorchcv("resnet_cifar", "resnet110_cifar10"), 32, slow=True
    ),
    "pytorchcv resnet18": case("resnet18", pytorchcv("resnet", "resnet18"), 224, slow=True),
    "pytorchcv resnet34": case("resnet34", pytorchcv("resnet", "resnet34"), 224, slow=True),
    "pytorchcv resnet50": case(
        "resnet50_stride1x1", pytorchcv("resnet", "resnet50"), 224, "resnet50_stride1x1"
    ),
    "pytorchcv resnet50b": case(
        "resnet50_stride3x3", pytorchcv("resnet", "resnet50b"), 224, "resnet50_stride3x3", slow=True
    ),
    "pytorchcv resnet101": case(
        "resnet101_stride1x1",
        pytorchcv("resnet", "resnet101"),
        224,
        "resnet101_stride1x1",
        slow=True,
    ),
    "pytorchcv resnet152b": case(
        "resnet152_stride3x3",
        pytorchcv("resnet", "resnet152b"),
        224,
        "resnet152_stride3x3",
        slow=True,
    ),
    "pytorchcv mobilenetv2_w1": case(
        "mobilenet_v2_pytorchcv", pytorchcv("mobilenetv2", "mobilenetv2_w1"), 224
    ),
    "pytorchcv mobilenetv2_w3d4": case(
        "mobilenet_v2_pytorchcv_x0.75", pytorchcv("mobilenetv2", "mobilenetv2_w3d4"), 224, slow=True
    ),
    "pytorchcv mobilenetv2_wd2": case(
        "mobilenet_v2_pytorchcv_x0.5", pytorchcv("mobilenetv2", "mobilenetv2_wd2"), 224, slow=True
    ),
    "pytorchcv mobilenetv2b_wd4": case(
        "mobilenet_v2b_pytorchcv_x0.25",
        pytorchcv("mobilenetv2", "mobilenetv2b_wd4"),
        224,
        slow=True,
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("expected", "make", "size", "architecture"), ORIGINALS.values(), ids=ORIGINALS.keys()
)
def test_logits_are_those_of_the_original(tmp_path, expected, make, size, architecture):
    network = nets.disturb(make())
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    teacher = load_teacher(tmp_path / "teacher.pth", architecture, image_size=size, **NORMALISATION)
    (tmp_path / "teacher.pth").unlink()
    assert teacher.architecture == expected
    images = np.random.default_rng(0).normal(size=(1 if size > 100 else 2, 3, size, size))
    with torch.no_grad():
        logits = network.double()(torch.from_numpy(images)).numpy()
    variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), teacher.variables)
    ours = jax.jit(teacher.module.apply)(variables, images.transpose(0, 2, 3, 1))
    assert ours.dtype == np.float64
    # Float64 leaves far less than the 1e-4 that is asked for, and every wrong stride far more.
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-9 * np.abs(logits).max())


def test_logits_in_float32(tmp_path):
    network = nets.disturb(nets.kuangliu())
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    teacher = load_teacher(tmp_path / "teacher.pth", image_size=32, **NORMALISATION)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = network(images).numpy()
    ours = teacher(images.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-4 * np.abs(logits).max())


def test_the_questions_matter(tmp_path):
    """Networks with the same variables that differ as much as networks do."""
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    for make, names in (
        (
            lambda: nets.ResNet((3, 4, 6, 3), 8, stride_first=False),
            ("resnet50_stride3x3_x0.125", "resnet50_stride1x1_x0.125"),
        ),
        (
            lambda: nets.ResNet((2, 2, 2, 2), 8, 10, 3, False),
            ("resnet18_3x3_x0.125", "resnet18_3x3_pool_x0.125"),
        ),
        (
            lambda: nets.TorchvisionMobileNetV2(10, 0.25),
            [f"mobilenet_v2{kind}_x0.25" for kind in ("", "_cifar", "_cifar_stem")],
        ),
        (
            lambda: nets.original_cifar(1),
            [f"resnet8_cifar{kind}" for kind in ("", "_padend", "_avgpool", "_avgpool_padend")],
        ),
    ):
        path = save(tmp_path / "teacher.pth", nets.disturb(make()).state_dict())
        answers = [
            np.asarray(load_teacher(path, name, image_size=32, **NORMALISATION)(images))
            for name in names
        ]
        for one, other in itertools.combinations(answers, 2):
            assert np.abs(one - other).max() > 0.03 * np.abs(one).max()


# ---- Wrappers, prefixes, formats ------------------------------------------------------------


@pytest.fixture(scope="module")
def state():
    return nets.disturb(nets.original_cifar(1, "shortcut")).state_dict()


def save(path, what):
    torch.save(what, path)
    return path


def same(teacher, state):
    kernel = teacher.variables["params"]["stage2_block1"]["conv1"]["kernel"]
    return np.array_equal(kernel.transpose(3, 2, 0, 1), state["layer2.0.conv1.weight"])


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": prefixed(s, "module."), "best_prec1": 91.7, "epoch": 3},
        lambda s: {"net": prefixed(s, "module."), "acc": 95.0},
        lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": []}},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {"model_state_dict": prefixed(s, "module.model.")},
        lambda s: {"state_dict": {k: v + 1 for k, v in s.items()}, "state_dict_ema": s},
        lambda s: {"n_averaged": torch.tensor(7), **prefixed(s, "module.")},
        lambda s: prefixed(s, "_orig_mod."),
        lambda s: {"ema": {"decay": 0.99}, "state_dict": s},
    ],
)
def test_wrappers_are_unwrapped(tmp_path, state, wrap):
    teacher = load_teacher(save(tmp_path / "teacher.pt", wrap(state)), **NORMALISATION)
    assert (teacher.architecture, teacher.image_size) == ("resnet8_cifar_projection", 32)
    assert same(teacher, state)


def test_memory_in_another_order(tmp_path, state):
    other = {
        k: v.to(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in state.items()
    }
    other["linear.weight"] = state["linear.weight"].T.contiguous().T
    teacher = load_teacher(save(tmp_path / "teacher.pt", other), **NORMALISATION)
    expected = load_teacher(save(tmp_path / "teacher.pt", state), **NORMALISATION)
    assert teacher.digest == expected.digest


def test_an_entry_can_be_named(tmp_path, state):
    other = {key: value + 1 for key, value in state.items()}
    path = save(tmp_path / "teacher.pt", {"state_dict": state, "state_dict_ema": other})
    teacher = load_teacher(path, entry="state_dict", **NORMALISATION)
    assert same(teacher, state)
    assert "'state_dict'" in teacher.convention
    with pytest.raises(TeacherError, match="did you mean state_dict"):
        load_teacher(path, entry="stat_dict", **NORMALISATION)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_precisions_become_float32(tmp_path, state, kind, suffix):
    converted = {k: v.to(kind) if v.is_floating_point() else v for k, v in state.items()}
    path = tmp_path / f"teacher{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(converted, path)
    teacher = load_teacher(path, **NORMALISATION)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(teacher.variables))
    assert same(teacher, {k: v.float() for k, v in converted.items()})


def test_own_files_say_it_all_and_are_always_the_same_bytes(tmp_path, state):
    path = save(tmp_path / "teacher.pth", state)
    for name in ("a", "b"):
        convert(path, tmp_path / f"{name}.safetensors", Stated(**NORMALISATION))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    loaded, read = load_teacher(tmp_path / "a.safetensors"), load_teacher(path, **NORMALISATION)
    assert loaded.digest == read.digest
    assert (loaded.mean, loaded.std, loaded.classes) == (MEAN, STD, 10)
    assert loaded.source == read.source
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "a.safetensors",
        "b.safetensors",
        "teacher.pth",
    ]
    with pytest.raises(TeacherError, match=r"says image_size=32, but 64 was asked for"):
        load_teacher(tmp_path / "a.safetensors", image_size=64)


# ---- Questions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (
            lambda: nets.original_cifar(1, "shortcut"),
            {},
            "how its images are normalised: give mean and std",
        ),
        (
            lambda: nets.original_cifar(1),
            NORMALISATION,
            r"what its shortcuts.* do: give architecture, resnet8_cifar \(.*second.*both sides.*\) "
            r"or resnet8_cifar_padend \(.*second.*end\) "
            r"or resnet8_cifar_avgpool \(average.*both sides\) "
            r"or resnet8_cifar_avgpool_padend \(average.*end\)\.$",
        ),
        (nets.kuangliu, NORMALISATION, "size of its images in pixels: give image_size"),
        (
            lambda: nets.ResNet((2, 2, 2, 2), 16, 10, 3),
            NORMALISATION | {"image_size": 32},
            r"whether a max-pool .*architecture, resnet18_3x3_x0.25 \(no\) or resnet18_3x3_pool",
        ),
        (
            lambda: nets.ResNet((3, 4, 6, 3), 8, stride_first=False),
            {},
            "bottleneck has the stride: give architecture.*nor the size.*nor how its images",
        ),
        (
            lambda: nets.TorchvisionMobileNetV2(10, 0.5),
            NORMALISATION | {"image_size": 32},
            r"which layers have a stride: give architecture, mobilenet_v2_x0.5 \(.*224.*\) or "
            r"mobilenet_v2_cifar_x0.5 \(.*chenyaofo.*\) or mobilenet_v2_cifar_stem_x0.5 \(",
        ),
    ],
)
def test_what_a_file_cannot_tell_is_asked_for(tmp_path, make, given, message):
    path = save(tmp_path / "teacher.pth", make().state_dict())
    with pytest.raises(TeacherError, match=message):
        load_teacher(path, **given)


@pytest.mark.parametrize(
    ("architecture", "error", "message"),
    [
        (
            "resnet20_cifar",
            TeacherError,
            "looks like resnet8_cifar_projection with 10 classes .*not like resnet20",
        ),
        ("resnet8", ConfigError, "did you mean resnet8_cifar"),
    ],
)
def test_a_named_network_must_agree(tmp_path, state, architecture, error, message):
    with pytest.raises(error, match=message):
        load_teacher(save(tmp_path / "t.pth", state), architecture, **NORMALISATION)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (1, 2)}, "mean has 2 numbers and std 3"),
        ({"mean": (1,), "std": (1,) * 4}, "mean has 1 numbers and std 4"),
        ({"mean": (0.5,) * 2, "std": (1,) * 2}, "3 channels, but mean and std have 2"),
        ({"std": (1, 0, 1)}, "std must be positive numbers, one for"),
        ({"mean": (float("nan"),) * 3}, "mean must be numbers, one for each"),
        ({"image_size": 0}, "image_size must be at least 1"),
    ],
)
def test_answers_are_checked(tmp_path, state, given, message):
    with pytest.raises(TeacherError, match=message):
        load_teacher(save(tmp_path / "t.pth", state), **NORMALISATION | given)


def test_normalisations_are_read():
    assert parse_normalisation(None, "imagenet") == NORMALISATIONS["imagenet"]
    assert parse_normalisation("0, .5,1e-1", "cifar10") == (
        (0, 0.5, 0.1),
        NORMALISATIONS["cifar10"][1],
    )
    assert parse_normalisation("", None) == ((), ())
    for mean, std, message in (
        ("1,2,3", None, "without --std"),
        ("cifar", "1,1,1", "did you mean cifar10"),
        ("1,", "1,1,1", "takes numbers such as"),
        ("1,2,3", "1,0,1", "positive"),
        ("1,2,nan", "1,1,1", "takes numbers such as"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_normalisation(mean, std)


# ---- Bad input ------------------------------------------------------------------------------


class Canary:
    """What a hostile pickle does; this one only makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_a_pickle_that_would_execute_code_is_refused(tmp_path, state, form, protocol):
    canary, path = tmp_path / "canary", tmp_path / "teacher.pth"
    hostile = {"state_dict": state, "more": Canary(str(canary))}
    if form == "pickle":
        path.write_bytes(pickle.dumps(hostile["more"], protocol=protocol))
    else:
        torch.save(
            hostile,
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=form == "zip",
        )
    message = "(?s)refused, and nothing in it was executed.*could execute any code.*state_dict"
    with pytest.raises(TeacherError, match=message) as refused:
        load_teacher(path, **NORMALISATION)
    assert not canary.exists()
    if protocol == 2:
        assert "posix.mkdir" in str(refused.value)


def test_whole_networks_and_programs_are_refused(tmp_path):
    path = save(tmp_path / "teacher.pth", nets.original_cifar(1))
    with pytest.raises(
        TeacherError, match=r"a whole tests.torch_networks.ResNet, which is a program's"
    ):
        load_teacher(path, **NORMALISATION)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("teacher/code/__torch__.py", "")
    with pytest.raises(TeacherError, match=r"TorchScript archive, which is a program"):
        load_teacher(path, **NORMALISATION)


def zip_of(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_wrong_zip_members(tmp_path, state):
    path = tmp_path / "teacher.pth"
    torch.save(state, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    weights = next(name for name in members if name.endswith("data/3"))

    def fails(changed, message, **compression):
        zip_of(path, changed, **compression)
        with pytest.raises(TeacherError, match=message):
            load_teacher(path, **NORMALISATION)

    fails({"readme.txt": b"hello"}, "not one of torch.save: it holds readme.txt")
    fails({}, "not one of torch.save: it holds nothing")
    fails(members | {"other/data.pkl": b""}, "not one of torch.save")
    fails(members, "compressed members", compression=zipfile.ZIP_DEFLATED)
    fails({k: v for k, v in members.items() if k != weights}, "not a readable PyTorch file")
    fails(members | {weights: b""}, "not a readable PyTorch file")
    path.write_bytes(b"junk\n")
    with pytest.raises(TeacherError, match=r"is text \('junk'\), not a checkpoint"):
        load_teacher(path, **NORMALISATION)

    # Found by test_mutations: torch takes such a member for empty, and returns whatever is there.
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0x10 if name == weights else 0
            archive.writestr(member, content)
    with pytest.raises(TeacherError, match="marked as folders"):
        load_teacher(path, **NORMALISATION)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.999])
def test_truncated_files(tmp_path, state, legacy, kept):
    path = tmp_path / "teacher.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if kept < 1 else kept])
    # One byte may be the beginning of anything.
    message = {0: "is empty", 1: "not a readable PyTorch file"}.get(
        kept, r"cut short or damaged.*download it again"
    )
    with pytest.raises(TeacherError, match=message):
        load_teacher(path, **NORMALISATION)


def changed(state, **changes):
    return {key: value for key, value in (state | changes).items() if value is not None}


BAD_STATES = {
    "no statistics": (
        lambda s: {k: v for k, v in s.items() if "running" not in k},
        "no BatchNorm statistics .*needs them",
    ),
    "one statistic lacks": (
        lambda s: changed(s, **{"layer1.0.bn1.running_var": None}),
        "looks like resnet8_cifar_projection .*1 key is missing: "
        "'layer1.0.bn1.running_var'.*statistics",
    ),
    "no BatchNorm": (
        lambda s: {k: v for k, v in s.items() if "bn" not in k and "shortcut.1" not in k},
        "is a network without BatchNorm",
    ),
    "NaN": (
        lambda s: changed(s, **{"linear.bias": torch.full((10,), float("nan"))}),
        "'linear.bias' holds infinite or not-a-number",
    ),
    "too large for float32": (
        lambda s: changed(s, **{"linear.bias": torch.full((10,), 1e300, dtype=torch.float64)}),
        "'linear.bias' holds infinite",
    ),
    "negative variance": (
        lambda s: changed(s, **{"bn1.running_var": -s["bn1.running_var"]}),
        "negative variances",
    ),
    "integers": (
        lambda s: changed(s, **{"conv1.weight": s["conv1.weight"].to(torch.int32)}),
        "'conv1.weight' has the type int32",
    ),
    "sparse": (
        lambda s: changed(s, **{"conv1.weight": s["conv1.weight"].to_sparse()}),
        "not a plain dense tensor",
    ),
    "repeated": (
        lambda s: changed(s, **{"bn1.bias": s["bn1.bias"][:1].expand(16)}),
        "'bn1.bias' is not a plain dense tensor",
    ),
    "renamed": (
        lambda s: changed(s, **{"conv1.weight": None, "conv1.wieght": s["conv1.weight"]}),
        r"has no key 'conv1.weight'; did you mean conv1.wieght",
    ),
    "renamed inside": (
        lambda s: changed(s, **{"layer2.0.bn2.bias": None, "layer2.0.bn2.b": s["bn1.bias"]}),
        "1 key is missing: 'layer2.0.bn2.bias' .did you mean layer2.0.bn2.b.*; 1 key is left over",
    ),
    "half prefixed": (
        lambda s: {("module." if "layer3" in k else "") + k: v for k, v in s.items()},
        r"blocks of several networks, under .*--prefix=module\. of convert",
    ),
    "a shape": (
        lambda s: changed(s, **{"linear.bias": torch.zeros(11)}),
        r"'linear.bias' has shape \(11,\), and \(10,\) is needed",
    ),
    "another width": (
        lambda s: changed(s, **{"conv1.weight": torch.zeros(17, 3, 3, 3)}),
        "looks like resnet8_cifar_projection_x1.0625 but does not fit it: "
        "'layer1.0.bn1.running_mean' has",
    ),
    "no width": (
        lambda s: changed(s, **{"conv1.weight": torch.zeros(0, 3, 3, 3)}),
        "unusual width",
    ),
    "no classes": (
        lambda s: changed(s, **{"linear.weight": torch.zeros(0, 64)}),
        "without classes",
    ),
    "grey images": (
        lambda s: changed(s, **{"conv1.weight": torch.zeros(16, 1, 3, 3)}),
        "images of 1 channels",
    ),
    "empty": (lambda _: {}, "holds no state dict: .*nothing"),
    "a list": (lambda s: list(s.values()), "holds a list and no state dict"),
    "no weights": (lambda _: {"epoch": 3, "args": {"lr": 0.1}}, "no state dict.*args, epoch"),
    "a deeper ResNet": (
        lambda s: changed(s, **{"layer1.1.conv1.weight": s["layer1.0.conv1.weight"]}),
        "looks like a ResNet that is not known .*3 stages of 2, 1, 1 basic blocks",
    ),
    "DenseNet": (
        lambda _: {
            "features.denseblock1.denselayer1.norm1.running_mean": torch.zeros(3),
            "features.denseblock1.denselayer1.conv1.weight": torch.zeros(1, 1, 1, 1),
        },
        "looks like a DenseNet, which is not known: the known ones",
    ),
    "VGG": (
        lambda _: {
            "features.0.weight": torch.zeros(64, 3, 3, 3),
            "features.1.running_mean": torch.zeros(64),
        },
        "looks like a VGG",
    ),
    "anything": (
        lambda _: {"encoder.norm.running_mean": torch.zeros(3)},
        "no known network .keys such as encoder.norm.running_mean",
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD_STATES.values(), ids=BAD_STATES.keys())
def test_bad_state_dicts(tmp_path, state, make, message):
    with pytest.raises(TeacherError, match=message) as error:
        load_teacher(save(tmp_path / "teacher.pth", make(dict(state))), **NORMALISATION)
    assert "\n" not in str(error.value)


def test_mobilenets_of_unusual_widths_are_not_guessed(tmp_path):
    state = nets.TimmMobileNetV2(10, 0.5).state_dict()
    state["conv_stem.weight"] = torch.zeros(17, 3, 3, 3)
    with pytest.raises(TeacherError, match="mobilenet_v2 with unusual widths"):
        load_teacher(save(tmp_path / "teacher.pth", state), **NORMALISATION)


def test_files_that_are_none(tmp_path):
    with pytest.raises(TeacherError, match="there is no teacher file"):
        load_teacher(tmp_path / "nothing.pth")
    (tmp_path / "teacher.onnx").write_bytes(b"x")
    with pytest.raises(TeacherError, match=r"expected one of \.safetensors, \.pth"):
        load_teacher(tmp_path / "teacher.onnx")
    (tmp_path / "teacher.safetensors").write_bytes(b"x")
    with pytest.raises(TeacherError, match="not a readable safetensors file"):
        load_teacher(tmp_path / "teacher.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(3, np.int32)}, tmp_path / "i.safetensors")
    with pytest.raises(TeacherError, match="'a' has the type I32"):
        load_teacher(tmp_path / "i.safetensors")


def test_torch_is_only_needed_for_its_own_files(tmp_path, state, monkeypatch):
    save_teacher(make_teacher(), tmp_path / "own.safetensors")
    safetensors.torch.save_file(dict(state), tmp_path / "foreign.safetensors")
    torch_file = save(tmp_path / "teacher.pth", state)
    monkeypatch.setitem(sys.modules, "torch", None)
    load_teacher(tmp_path / "own.safetensors")
    load_teacher(tmp_path / "foreign.safetensors", **NORMALISATION)
    with pytest.raises(TeacherError, match=r"needs torch: \./launch/local\.sh --with=torch"):
        load_teacher(torch_file, **NORMALISATION)


GOOD = {
    "architecture": "resnet8_cifar",
    "classes": 10,
    "image_size": 8,
    "mean": [0.5] * 3,
    "std": [0.25] * 3,
}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        *(
            ({k: v for k, v in GOOD.items() if k != field}, f"does not say '{field}'")
            for field in GOOD
        ),
        (GOOD | {"std": [1, 0, 1]}, "'std' .*positive numbers"),
        (GOOD | {"mean": [0.5, 0.5]}, "mean has 2 numbers and std 3"),
        (GOOD | {"mean": ["a"] * 3}, "'mean' .*must be numbers"),
        (GOOD | {"mean": [0.5], "std": [0.5]}, "3 channels, but mean and std have 1"),
        (GOOD | {"preparation": {"resize": 0}}, "resize must be at least 1"),
        (GOOD | {"preparation": {"resize": 2**40}}, "resize must be at least 1"),
        (GOOD | {"preparation": {"resize": 7}}, "leaves no centre of image_size=8 to cut out"),
        (GOOD | {"preparation": {"interpolation": "cubic"}}, "did you mean bicubic"),
        (GOOD | {"preparation": {"crop": ["center"]}}, "crop cannot be"),
        (GOOD | {"preparation": {"run": "x"}}, "a preparation has the fields crop"),
        (GOOD | {"preparation": []}, "'preparation' .*must be an object"),
        (GOOD | {"std": [float("inf")] * 3}, "'std' .*positive numbers"),
        (GOOD | {"classes": "10"}, "'classes' .*positive integer"),
        (GOOD | {"classes": True}, "'classes' .*positive integer"),
        (GOOD | {"classes": 11}, "has shape .*the network needs"),
        (GOOD | {"image_size": 0}, "'image_size' .*positive integer"),
        (GOOD | {"architecture": "resnet9"}, "unknown network 'resnet9'"),
        (GOOD | {"architecture": "resnet20_cifar"}, "lacks 'batch_stats/stage1_block2"),
        (GOOD | {"architecture": None}, "'architecture' .*a name"),
        (GOOD | {"source": "abc"}, "'source' .*SHA-256"),
        (GOOD | {"checksum": "0" * 64}, "checksum does not hold"),
        (GOOD | {"meen": 1}, "unknown metadata 'meen'; did you mean mean"),
    ],
)
def test_own_metadata_are_checked(tmp_path, metadata, message):
    path = tmp_path / "teacher.safetensors"
    save_teacher(make_teacher(), path)
    arrays = safetensors.numpy.load_file(path)
    text = metadata if isinstance(metadata, str) else json.dumps(metadata)
    safetensors.numpy.save_file(arrays, path, {"adadfq": text})
    with pytest.raises(TeacherError, match=message):
        load_teacher(path)


def test_own_arrays_are_checked(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_teacher(make_teacher(), path)
    arrays = safetensors.numpy.load_file(path)
    name = "batch_stats/stem_norm/var"
    for array, message in (
        (arrays[name].astype(np.float16), "has the type F16"),
        (arrays[name] * np.nan, "not-a-number"),
        (-arrays[name], "negative variances"),
        (arrays[name][:3], "has shape"),
    ):
        safetensors.numpy.save_file(arrays | {name: array}, path, {"adadfq": json.dumps(GOOD)})
        with pytest.raises(TeacherError, match=message):
            load_teacher(path)
    safetensors.numpy.save_file(arrays | {"x": arrays[name]}, path, {"adadfq": json.dumps(GOOD)})
    with pytest.raises(TeacherError, match="unknown array 'x'"):
        load_teacher(path)


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(TeacherError, match="cannot be written: No such file or directory"):
        save_teacher(make_teacher(), tmp_path / "nowhere" / "teacher.safetensors")
