"""A network from the user's own function: `convert --network`."""

import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from adadfq_jax import load_teacher
from adadfq_jax.cli import main
from tests import torch_networks as nets

PROGRAM = """
import torch
from torch import nn
from beside import WIDTH


class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH)
        self.head = nn.Linear(WIDTH, classes)
        self.register_buffer("order", torch.arange(3))

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def network():
    return Net()


def larger():
    return Net(classes=12)


def fails():
    raise KeyError("no such variant\\nat all")


def leaves():
    raise SystemExit(1)


def weights():
    return Net().state_dict()


def wants(width):
    return Net()


def without():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))


def stops():
    raise SystemExit


instance = Net()
number = 3
"""
STATED = ("--image_size=8", "--mean=0.5,0.5,0.5", "--std=0.25,0.25,0.25")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's program, its network's weights in several files, and the network."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "beside.py").write_text("WIDTH = 4\n")
    (folder / "nets.py").write_text(PROGRAM)
    (folder / "broken.py").write_text("import nothing_of_the_kind\n")
    program = {"__name__": "user", "WIDTH": 4}
    exec(PROGRAM.replace("from beside import WIDTH", ""), program)
    network = nets.disturb(program["network"]()).eval()
    state = network.state_dict()
    torch.save(state, folder / "weights.pth")
    inside = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 3, "state_dict": inside}, folder / "parallel.pth")
    others = {f"backbone.{key}": value for key, value in state.items()}
    torch.save(others | {"aux.weight": torch.zeros(3)}, folder / "prefixed.pth")
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    torch.save({k: v for k, v in state.items() if k != "norm.bias"}, folder / "lacking.pth")
    torch.save(state | {"more.weight": torch.zeros(3)}, folder / "more.pth")
    return folder, network


def arguments(folder, function="nets.py:network", weights="weights.pth", output="out.safetensors"):
    program = folder / function if ".py" in function else function
    files = (f"--input={folder / weights}", f"--output={folder / output}")
    return ["convert", *files, f"--network={program}", *STATED, "--overwrite"]


@pytest.mark.parametrize(
    "weights", ["weights.pth", "weights.safetensors", "parallel.pth", "prefixed.pth"]
)
def test_the_shell_reads_a_network_that_a_function_returns(folder, weights, capsys):
    folder, network = folder
    assert main.run(arguments(folder, weights=weights)) == 0
    assert "logits differ by at most" in capsys.readouterr().out
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    teacher = load_teacher(folder / "out.safetensors")
    assert (teacher.architecture, len(teacher.source)) == ("Net", 64)
    np.testing.assert_allclose(teacher(images), expected, rtol=1e-4, atol=1e-4)


def test_a_function_of_a_module_that_python_finds(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder[0])
    assert main.run(arguments(folder[0], "nets:network")) == 0
    capsys.readouterr()


def test_the_file_needs_no_torch_and_none_of_the_users_code(folder):
    folder, _ = folder
    assert main.run(arguments(folder, output="alone.safetensors")) == 0
    program = (
        "import sys; sys.modules['torch'] = None; import adadfq_jax; "
        f"print(adadfq_jax.load_teacher({str(folder / 'alone.safetensors')!r}).architecture)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "Net\n"), ran.stderr


@pytest.mark.parametrize(
    ("function", "weights", "message"),
    [
        ("nets.py", "weights.pth", "--network is FILE.py:FUNCTION or package.module:function"),
        ("net.py:network", "weights.pth", "there is no file"),
        ("nets.py:networks", "weights.pth", "there is no function 'networks'; did you mean netw"),
        ("nets.py:number", "weights.pth", "there is no function 'number'"),
        ("broken.py:network", "weights.pth", "fails with ModuleNotFoundError: No module named"),
        ("no.such.package:network", "weights.pth", "fails with ModuleNotFoundError"),
        ("nets.py:fails", "weights.pth", "nets.py:fails fails with KeyError: 'no such variant"),
        ("nets.py:leaves", "weights.pth", "nets.py:leaves fails with SystemExit: 1"),
        ("nets.py:stops", "weights.pth", "nets.py:stops fails with SystemExit."),
        ("nets.py:instance", "weights.pth", "nets.py:instance is a network, and a function"),
        ("nets.py:wants", "weights.pth", "fails with TypeError"),
        ("nets.py:weights", "weights.pth", "must return the network, a torch.nn.Module, but ret"),
        ("nets.py:larger", "weights.pth", "'head.weight' has shape (10, 4), not (12, 4)"),
        ("nets.py:network", "lacking.pth", "it lacks 'norm.bias'; did you mean"),
        ("nets.py:network", "more.pth", "which has no 'more.weight'"),
        ("nets.py:network", "missing.pth", "there is no teacher file"),
        ("nets.py:without", "weights.pth", "is of another network than"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(folder, sentence, function, weights, message):
    folder, _ = folder
    output = folder / "wrong.safetensors"
    assert message in sentence(arguments(folder, function, weights, "wrong.safetensors"))
    assert not output.exists()


def test_what_does_not_go_together(folder, sentence):
    folder, _ = folder
    words = arguments(folder)
    assert "no architecture to choose" in sentence([*words, "--architecture=resnet20_cifar"])
    words[1] = "--input=timm:resnet18"
    assert "timm:resnet18 has its own network" in sentence(words)
    assert "does not say its images: give" in sentence([*arguments(folder)[:4], "--overwrite"])
