"""PyTorch checkpoints turned into teachers, by name and by file."""

import hashlib
import importlib
import sys
import types

import numpy as np
import pytest
import safetensors.torch
import torch

from adadfq_jax import load_teacher
from adadfq_jax.cli import main
from adadfq_jax.errors import ConfigError, TeacherError, VerificationError
from adadfq_jax.models.preparation import Preparation
from adadfq_jax.teachers.convert import convert, summary
from adadfq_jax.teachers.load import read_teacher
from adadfq_jax.teachers.normalisation import NORMALISATIONS
from adadfq_jax.teachers.stated import Stated
from tests import ROOT
from tests import torch_networks as nets

REAL = ROOT / ".." / "shared" / "teachers" / "resnet20_cifar10.th"


@pytest.fixture
def checkpoint(tmp_path):
    network = nets.disturb(nets.original_cifar(3, "shortcut", 100))
    torch.save({"state_dict": network.state_dict()}, tmp_path / "teacher.pth")
    return tmp_path / "teacher.pth"


def test_the_verb(tmp_path, checkpoint, capsys):
    output = tmp_path / "teacher.safetensors"
    arguments = ["convert", f"--input={checkpoint}", f"--output={output}", "--mean=cifar10"]
    assert main.run(arguments) == 0
    shown = capsys.readouterr().out
    for expected in (
        "resnet20_cifar_projection",
        "the original CIFAR ResNet keys, of the entry 'state_dict'",
        "278,324",
        "22 (conv",
        "40,818,944 for one",
        "32x32",
        "0.247, 0.2435, 0.2616",
        hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        str(output),
    ):
        assert expected in shown
    assert len(shown.splitlines()) < 20
    content = output.read_bytes()
    assert main.run([*arguments, "--overwrite"]) == 0
    assert output.read_bytes() == content
    assert main.run(["convert", f"--input={output}", f"--output={tmp_path / 'b.safetensors'}"]) == 0
    assert (tmp_path / "b.safetensors").read_bytes() == content
    assert load_teacher(output).std == NORMALISATIONS["cifar10"][1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--input=FILE is missing"),
        (["--input=a.pth"], "--output=FILE is missing"),
        (["--input=a.pth", "--output=b.pth"], "must be a .safetensors file"),
        (["--input=a.pth", "--output=b.safetensors"], "there is no teacher file 'a.pth'"),
        (["--input=a.pth", "--output=b.safetensors", "--mean=imagnet"], "did you mean imagenet"),
        (["--input=a.pth", "--output=b.safetensors", "--image_size=x"], "image_size"),
    ],
)
def test_bad_arguments(arguments, message, sentence):
    assert message in sentence(["convert", *arguments])


def test_nothing_is_written_where_something_is_not_said(tmp_path, checkpoint, capsys):
    output = tmp_path / "teacher.safetensors"
    assert main.run(["convert", f"--input={checkpoint}", f"--output={output}"]) == 2
    assert "give mean and std" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["teacher.pth"]


def test_a_file_that_exists_is_kept(tmp_path, checkpoint, sentence):
    output = tmp_path / "teacher.safetensors"
    output.write_text("mine")
    arguments = ["convert", f"--input={checkpoint}", f"--output={output}", "--mean=imagenet"]
    for flags in ([], ["--overwrite"]):
        assert "is not a teacher that adadfq wrote" in sentence([*arguments, *flags])
    assert output.read_text() == "mine"
    output.unlink()
    assert main.run(arguments) == 0
    assert "exists; --overwrite replaces it." in sentence(arguments)
    assert main.run([*arguments, "--overwrite"]) == 0
    assert load_teacher(output).classes == 100


@pytest.mark.skipif(not REAL.exists(), reason="no real checkpoint at hand")
def test_the_real_checkpoint_is_recognised(tmp_path):
    mean, std = NORMALISATIONS["imagenet"]
    given = {"architecture": "resnet20_cifar", "mean": mean, "std": std}
    teacher = convert(REAL, tmp_path / "teacher.safetensors", Stated(**given))
    assert (teacher.architecture, teacher.classes, teacher.image_size) == ("resnet20_cifar", 10, 32)
    assert "269,722" in summary(teacher, "")


# ---- Packages -------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def fake(monkeypatch, name, **contents):
    """Stands in for a package's module that is not installed, or does not import here."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def pytorchcv(monkeypatch):
    """The package without the index of all its networks, which would import torchvision."""
    known = {
        name: getattr(importlib.import_module(f"pytorchcv.models.{module}"), name)
        for module, name in (
            ("resnet_cifar", "resnet20_cifar10"),
            ("resnet", "resnet50"),
            ("preresnet_cifar", "preresnet20_cifar10"),
        )
    }
    fake(
        monkeypatch,
        "pytorchcv.model_provider",
        _models=known,
        get_model=lambda name, pretrained: known[name](pretrained=pretrained),
    )
    return known


def cache_pytorchcv(home, monkeypatch, network, name):
    store = importlib.import_module("pytorchcv.models.common.model_store")
    error, _, _ = store.get_model_name_suffix_data(name)
    folder = home / ".torch" / "models"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "weights")
    sha1 = hashlib.sha1((folder / "weights").read_bytes()).hexdigest()
    (folder / "weights").rename(folder / f"{name}-{error}-{sha1[:8]}.pth")
    monkeypatch.setattr(store, "get_model_name_suffix_data", lambda _: (error, sha1, ""))
    return folder / f"{name}-{error}-{sha1[:8]}.pth"


def test_pytorchcv_networks_come_from_its_cache(home, monkeypatch, pytorchcv, capsys):
    output = home / "teacher.safetensors"
    arguments = ["convert", "--input=pytorchcv:resnet20_cifar10", f"--output={output}"]
    assert main.run([*arguments, "--std=cifar10-pytorchcv"]) == 2
    assert "not in the package's cache" in capsys.readouterr().err
    network = nets.disturb(pytorchcv["resnet20_cifar10"]())
    path = cache_pytorchcv(home, monkeypatch, network, "resnet20_cifar10")
    assert main.run(arguments) == 2
    assert "give mean and std" in capsys.readouterr().err
    assert main.run([*arguments, "--std=cifar10-pytorchcv"]) == 0
    assert "pytorchcv keys" in capsys.readouterr().out
    teacher = load_teacher(output)
    assert (teacher.architecture, teacher.image_size) == ("resnet20_cifar_projection", 32)
    assert teacher.std == (0.2023, 0.1994, 0.2010)
    path.write_bytes(path.read_bytes() + b"x")
    assert main.run([*arguments, "--std=cifar10-pytorchcv", "--overwrite"]) == 2
    assert "SHA-1" in capsys.readouterr().err


def test_a_package_gives_the_code_of_what_is_not_recognised(home, monkeypatch, pytorchcv, capsys):
    name, output = "preresnet20_cifar10", home / "teacher.safetensors"
    network = nets.disturb(pytorchcv[name]()).eval()
    cache_pytorchcv(home, monkeypatch, network, name)
    arguments = ["convert", f"--input=pytorchcv:{name}", f"--output={output}", "--mean=imagenet"]
    assert main.run([*arguments, "--std=imagenet", "--architecture=resnet20_cifar"]) == 2
    assert "which has no architecture to choose" in capsys.readouterr().err
    assert main.run([*arguments, "--std=imagenet"]) == 0
    assert "logits differ by at most" in capsys.readouterr().out
    teacher = load_teacher(output)
    assert (teacher.architecture, teacher.keys, len(teacher.source)) == (name, "modules", 64)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(teacher(images), expected, rtol=1e-4, atol=1e-4)


def test_what_a_package_gives_is_not_written_where_it_differs(home, monkeypatch, pytorchcv):
    network = nets.disturb(pytorchcv["resnet20_cifar10"]())
    cache_pytorchcv(home, monkeypatch, network, "resnet20_cifar10")

    def prove(teacher, module):
        raise VerificationError("they differ.")

    output = home / "teacher.safetensors"
    stated = Stated(mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(VerificationError, match="they differ"):
        convert("pytorchcv:resnet20_cifar10", output, stated, prove=prove)
    assert not output.exists()


def test_a_package_tells_the_stride_and_the_size(home, monkeypatch, pytorchcv):
    cache_pytorchcv(home, monkeypatch, pytorchcv["resnet50"](), "resnet50")
    output = home / "teacher.safetensors"
    mean, std = NORMALISATIONS["imagenet"]
    teacher = convert("pytorchcv:resnet50", output, Stated(mean=mean, std=std))
    assert (teacher.architecture, teacher.image_size) == ("resnet50_stride1x1", 224)
    other = Stated("resnet50_stride3x3", mean, std)
    with pytest.raises(TeacherError, match="is resnet50_stride1x1, not resnet50_stride3x3"):
        convert("pytorchcv:resnet50", output, other, overwrite=True)


def test_torchvision_says_all_of_it(home, monkeypatch):
    def make():
        return nets.ResNet((3, 4, 6, 3), 8, 1000, stride_first=False)

    mean, std = NORMALISATIONS["imagenet"]
    images = types.SimpleNamespace(crop_size=[224], mean=list(mean), std=list(std))
    weights = types.SimpleNamespace(
        url="https://host/resnet50-11ad3fa6.pth", transforms=lambda: images
    )
    fake(
        monkeypatch,
        "torchvision.models",
        list_models=lambda: ["resnet50"],
        get_model_weights=lambda _: types.SimpleNamespace(DEFAULT=weights),
        get_model=lambda _, weights: make(),
    )
    fake(monkeypatch, "torchvision")
    output = home / "teacher.safetensors"
    with pytest.raises(TeacherError, match=r"not in the package's cache, .*resnet50-11ad3fa6.pth"):
        convert("torchvision:resnet50", output)
    (home / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(make().state_dict(), home / "torch/hub/checkpoints/resnet50-11ad3fa6.pth")
    teacher = convert("torchvision:resnet50", output)
    assert (teacher.architecture, teacher.image_size, teacher.mean, teacher.std) == (
        "resnet50_stride3x3_x0.125",
        224,
        mean,
        std,
    )
    with pytest.raises(TeacherError, match="torchvision has no network 'resnet5': did you mean"):
        convert("torchvision:resnet5", output, overwrite=True)


def timm_network(**said):
    """A network with what timm says of it."""
    network = nets.disturb(nets.TimmMobileNetV2(10, 0.5))
    network.pretrained_cfg = {
        "hf_hub_id": "timm/mobilenetv2_050",
        "input_size": (3, 224, 224),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        **said,
    }
    return network


def test_timm_says_all_of_it(home, monkeypatch):
    network = timm_network()
    cached = {}
    fake(
        monkeypatch,
        "timm",
        is_model=lambda name: name == "mobilenetv2_050",
        list_models=lambda: ["mobilenetv2_050"],
        create_model=lambda _, pretrained: network,
    )
    fake(
        monkeypatch,
        "huggingface_hub",
        try_to_load_from_cache=lambda repository, name: cached.get((repository, name)),
    )
    output = home / "teacher.safetensors"
    with pytest.raises(TeacherError, match="not in the package's cache"):
        convert("timm:mobilenetv2_050", output)
    safetensors.torch.save_file(network.state_dict(), home / "model.safetensors")
    key = ("timm/mobilenetv2_050", "model.safetensors")
    cached[key] = str(home / "model.safetensors")
    teacher = convert("timm:mobilenetv2_050.lamb_in1k", output)
    assert (teacher.architecture, teacher.image_size, teacher.std) == (
        "mobilenet_v2_x0.5",
        224,
        (0.25,) * 3,
    )


def test_a_package_that_is_not_there_or_fails(tmp_path, monkeypatch):
    output = tmp_path / "teacher.safetensors"
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(TeacherError, match="needs the package timm: pip install timm"):
        convert("timm:resnet18", output)
    (tmp_path / "timm.py").write_text("import a_package_that_is_missing")
    monkeypatch.delitem(sys.modules, "timm")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TeacherError, match="there but cannot be imported: No module named 'a_pack"):
        convert("timm:resnet18", output)

    def fail():
        raise RuntimeError("operator does not exist")

    fake(monkeypatch, "torchvision")
    fake(monkeypatch, "torchvision.models", list_models=fail)
    with pytest.raises(TeacherError, match="torchvision fails with RuntimeError: operator does"):
        convert("torchvision:resnet18", output)


def test_images_are_prepared_as_a_package_says(home, monkeypatch):
    """timm's share of the image that a crop is, its interpolation and its way of cropping."""
    network = timm_network(crop_pct=0.95, interpolation="bicubic", crop_mode="squash")
    fake(monkeypatch, "timm", is_model=lambda _: True, create_model=lambda _, pretrained: network)
    path = str(home / "model.safetensors")
    fake(monkeypatch, "huggingface_hub", try_to_load_from_cache=lambda *_: path)
    safetensors.torch.save_file(network.state_dict(), path)
    output = home / "teacher.safetensors"
    convert("timm:mobilenetv2_050", output)
    assert load_teacher(output).preparation == Preparation(235, "bicubic", "squash")
    # What is stated goes before.
    stated = Stated(preparation={"resize": 256})
    convert("timm:mobilenetv2_050", output, stated, overwrite=True)
    assert load_teacher(output).preparation == Preparation(256, "bicubic", "squash")
    other = read_teacher(output, Stated(preparation={"crop": "center"}))
    assert other.preparation == Preparation(256, "bicubic", "center")
    with pytest.raises(ConfigError, match="interpolation cannot be 'cubic': did you mean bicubic"):
        Stated(preparation={"interpolation": "cubic"})
