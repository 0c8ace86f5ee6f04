"""Steps compiled for TPUs and GPUs: what is refused, what is counted, and the real compilers."""

import importlib.util
import json

import pytest

from adadfq_jax.benchmarks import gpu_cards, hlo, precompile, tpu_slices
from adadfq_jax.cli import main
from adadfq_jax.errors import ConfigError

TEXT = """
  %all-reduce.1 = f32[16,4]{1,0} all-reduce(%a), channel_id=1, replica_groups={{0,1}}
  %all-reduce.2 = (f32[8]{0:T(256)}, bf16[4]{0}) all-reduce(%a, %b), channel_id=2
  ROOT %x = f32[2,64]{1,0:T(8,128)} all-gather(%c), channel_id=3, dimensions={0}
  %start = (f32[64]{0}, f32[2,64]{1,0}) all-gather-start(%c), channel_id=4
  %done = f32[2,64]{1,0} all-gather-done(%start)
  %add = f32[16,4]{1,0} add(%all-reduce.1, %y)
"""


def test_collectives_and_their_bytes():
    assert hlo.collectives(TEXT) == {
        "all-reduce": (2, 16 * 4 * 4 + 8 * 4 + 4 * 2),
        "all-gather": (2, 2 * (2 * 64 * 4)),
    }
    assert hlo.collectives("%a = pred[3]{0} and(%b, %c)") == {}


@pytest.mark.parametrize(
    ("topology", "batch", "message"),
    [
        ("v5e:4x5", 16, "unknown topology 'v5e:4x5': of v5e there are v5e:2x2, v5e:2x4, v5e:4x4"),
        ("v100", 16, "GPUs are a100, b200, .* such as h100:1x8; TPUs are v4, .* such as v5e:4x4"),
        ("", 16, "--topology has an empty name: GPUs are"),
        ("H100", 16, "unknown topology 'H100': of h100 there are h100, h100:1x2"),
        ("v5e:4x8", 16, "batch_size=16 does not divide evenly over the 32 chips of v5e:4x8"),
        ("v5p:2x2x4", 24, "over the 16 chips"),
        ("h100:3", 16, "unknown topology 'h100:3': of h100 there are h100, h100:1x2"),
        ("rtx4090:1x8", 4, "over the 8 chips of rtx4090:1x8"),
    ],
)
def test_bad_slices(small_config, topology, batch, message):
    small_config.batch_size = batch
    with pytest.raises(ConfigError, match=message):
        precompile.precompile(small_config, [topology])


@pytest.mark.parametrize(
    ("topology", "packages", "extra"),
    [("v5e:2x2", ("libtpu",), "tpu"), ("h100", gpu_cards.PLUGINS, "cuda")],
)
def test_without_the_compiler_it_names_the_command(
    small_config, monkeypatch, topology, packages, extra
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in packages else find(name)
    )
    with pytest.raises(ConfigError, match=rf"launch/local.sh --with={extra} in the source folder"):
        precompile.precompile(small_config, [topology])


def test_the_command_line(capsys):
    assert main.run(["precompile", "--config=configs/base.py"]) == 2
    assert "--topology=NAME is missing" in capsys.readouterr().err


def test_what_does_not_fit_is_said():
    row = {
        "topology": "v5e:2x2",
        "chips": 4,
        "compile_s": 1.0,
        "steps": 1,
        "arguments": 9e9,
        "outputs": 0,
        "temporaries": 9e9,
        "program": 0,
        "needed": 18e9,
        "memory": tpu_slices.CHIPS["v5e"].memory,
        "flops": 1e9,
        "bytes": 1e9,
        "kernels": None,
        "collectives": {"all-reduce": (6, 5_320_000)},
        "seconds": None,
    }
    result = {"network": "n", "bits": "w4a4", "batch_size": 16, "slices": [row]}
    text = precompile.precompile_table(result)
    assert "6 all-reduce, 5.32 MB" in text
    assert "does not fit: 18.0 GB a chip" in text
    assert "kernels" not in text
    row |= {"topology": "h100", "kernels": {"convolutions": 3.0, "copies": 1.2}, "seconds": 1e-3}
    text = precompile.precompile_table(result)
    assert "4 kernels a step: 3 convolutions, 1 copies" in text
    assert "1.00 ms" in text
    assert "not measured" in text


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the compiler for TPUs, libtpu (extra [tpu]), is not installed",
)
@pytest.mark.devices
@pytest.mark.filterwarnings("ignore")
def test_a_real_slice(capsys):
    """More chips need no more memory each, and give their sums once."""
    flags = ["--config.teacher.architecture=resnet8_cifar", "--topology=v5e:2x2,v5e:2x4", "--json"]
    assert main.run(["precompile", "--config=configs/base.py", *flags]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    four, eight = result["slices"]
    assert (four["chips"], eight["chips"]) == (4, 8)
    for row in (four, eight):
        assert 0 < row["needed"] < row["memory"]
        # The gradients of both players, and the two BatchNorm statistics of G's four.
        assert row["collectives"]["all-reduce"][1] > 1e6
        assert row["collectives"]["all-gather"][0] >= 4
    assert eight["temporaries"] < four["temporaries"]
    assert eight["flops"] < four["flops"]


needs_cuda = pytest.mark.skipif(
    not gpu_cards.has_compiler(), reason="JAX's CUDA plugin (extra [cuda]) is not installed"
)


@needs_cuda
@pytest.mark.devices
@pytest.mark.filterwarnings("ignore")
def test_kernels_of_a_step(capsys):
    """ResNet-20 has some 400 (`adadfq_jax/benchmarks/README.md` says of what), and had 499."""
    assert main.run(["precompile", "--config=cifar10_resnet20", "--topology=h100", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["slices"]
    assert row["kernels"]["convolutions"] <= 128
    assert sum(row["kernels"].values()) <= 420


@needs_cuda
@pytest.mark.devices
@pytest.mark.filterwarnings("ignore")
def test_real_cards(capsys):
    """More cards need no more memory each, and give their sums once."""
    flags = ["--config.teacher.architecture=resnet8_cifar", "--topology=h100,h100:1x4", "--json"]
    assert main.run(["precompile", "--config=configs/base.py", *flags]) == 0
    one, four = json.loads(capsys.readouterr().out.splitlines()[-1])["slices"]
    assert (one["chips"], four["chips"]) == (1, 4)
    for row in (one, four):
        assert row["steps"] == 50
        assert 0 < row["needed"] < row["memory"]
        # ResNet-8 has 9 convolutions: of P forward and to the image, of Q also to the kernels and
        # once more to the image, and the last one not past the first layer; G has more.
        assert row["kernels"]["convolutions"] > 9 * 2 + 9 * 3 + 8
        assert 2e-6 * sum(row["kernels"].values()) <= row["seconds"] < 0.1
    assert one["collectives"] == {}
    assert four["collectives"]["all-reduce"][1] > 1e6
    assert four["temporaries"] < one["temporaries"]
    assert four["flops"] < one["flops"] < 4.1 * four["flops"]
    assert four["bytes"] < one["bytes"]
