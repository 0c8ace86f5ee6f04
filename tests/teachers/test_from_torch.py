"""Networks read from PyTorch modules: proved, quantized, exported, or refused in one sentence."""

import warnings
from collections import OrderedDict as parts

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import adadfq_jax
from adadfq_jax.errors import ConfigError, ExportError, TeacherError, VerificationError
from adadfq_jax.evaluation import original
from adadfq_jax.exporting import integers, numpy_reader, quantized
from adadfq_jax.models.operations import OPERATIONS
from adadfq_jax.teachers.aten import READERS
from adadfq_jax.teachers.load import load_teacher, save_teacher
from adadfq_jax.training.calibrated import calibrated_on
from tests import ROOT
from tests import torch_networks as nets
from tests.teachers import zoo

SIZE = 12
HALF = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


class Block(nn.Module):
    """A convolution of any shape, a BatchNorm and an activation."""

    def __init__(self, inputs, outputs, act, size=3, affine=True, **settings):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, **settings)
        self.bn = nn.BatchNorm2d(outputs, affine=affine)
        self.act = act

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Everything(nn.Module):
    """Every kind of node."""

    def __init__(self, channels=3):
        super().__init__()
        odd = {"padding": (0, 1), "stride": (1, 2), "bias": False}
        self.stem = Block(channels, 8, nn.SiLU(inplace=True), (1, 3), **odd)
        self.wide = Block(8, 8, nn.Hardswish(), padding="same", dilation=2, groups=4)
        self.leaky = Block(8, 8, nn.LeakyReLU(0.1), 4, padding="same", affine=False)
        self.smooth = Block(8, 8, nn.GELU(), 1)
        self.tanh = Block(8, 8, nn.GELU("tanh"), 1)
        self.bounded = Block(8, 8, nn.Hardtanh(-1, 2), 1)
        self.clipped = Block(8, 8, nn.ReLU6(), 1)
        self.squeeze, self.expand = nn.Linear(8, 4), nn.Linear(4, 8, bias=False)
        self.hidden, self.norm = nn.Linear(60, 16), nn.BatchNorm1d(16)
        self.head = nn.Sequential(nn.Dropout(), nn.ReLU(), nn.Linear(16, 10))

    def forward(self, x):
        x = self.wide(self.stem(x))
        x = F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 2)
        first, second = self.leaky(x).chunk(2, 1)
        x = torch.cat([second, first], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)
        gate = self.squeeze(x.mean((2, 3)))
        gate = torch.sigmoid(self.expand(F.relu(gate)))[:, :, None, None]
        x = self.smooth(x) * gate
        x = x * F.hardsigmoid(F.adaptive_avg_pool2d(self.tanh(x), 1))
        x = self.bounded(x) * F.relu6(self.clipped(x) + 3) / 6 - 0.25
        y = F.interpolate(x[:, :, ::2, ::2], scale_factor=2, mode="nearest")
        y = F.pad(F.pad(y, (1, 0, 0, 2), value=0.5), (0, 0, 0, 0, 1, 1))[:, 1:9]
        z = F.interpolate(x, size=(9, 7), mode="bilinear", align_corners=False)
        z = F.interpolate(z, size=(11, 9), mode="bilinear", align_corners=True)
        z = F.adaptive_avg_pool2d(z, (4, 3))
        y = F.avg_pool2d(F.pad(y, (1, 1, 1, 1)), 3, 2, 1, count_include_pad=False)
        y = F.max_pool2d(y, 2, ceil_mode=True) + F.avg_pool2d(y, 2, ceil_mode=True)
        y = F.adaptive_avg_pool2d(y, (4, 3))
        x = (y + z)[:, :5].flatten(1)
        return self.head(self.norm(self.hidden(x)))


@pytest.fixture(scope="module")
def everything():
    module = nets.disturb(Everything())
    return module, adadfq_jax.from_torch(module, image_size=SIZE, **HALF)


def test_every_kind_of_node_is_read_and_proved(everything):
    module, teacher = everything
    kinds = {node.op for node in teacher.module.nodes}
    assert OPERATIONS.keys() - {"quantizer"} == kinds  # which is of `quant.sums`
    text = adadfq_jax.describe_teacher(teacher)
    for said in ("Everything", "logits differ by at most", "nats", "MACs", "parameters", "layers"):
        assert said in text
    # By the names of the user's own modules.
    assert {"stem.conv", "stem.bn", "stem.act", "squeeze", "head.2"} <= {
        node.name for node in teacher.module.nodes
    }
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    pixels = torch.from_numpy((images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.25).float()
    with torch.no_grad():
        np.testing.assert_allclose(teacher(images), module(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".stablehlo", ".pth"])
def test_every_kind_of_node_is_exported(everything, tmp_path, suffix):
    module, teacher = everything
    images = np.random.default_rng(0).normal(size=(16, SIZE, SIZE, 3)).astype(np.float32)
    student = calibrated_on(teacher, "w8a8", images)
    path = tmp_path / f"student{suffix}"
    adadfq_jax.export(student, path, images=images)
    expected = np.asarray(student(images))
    found = np.asarray(adadfq_jax.load_exported(path)(images))
    difference = np.abs(found - expected).max(1) / np.ptp(expected)
    assert np.median(difference) < 1e-5
    if suffix == ".safetensors":
        described, arrays = numpy_reader.parse(integers.to_bytes(quantized.take_apart(student), {}))
        values = numpy_reader.compute_all(described, arrays, images)
        found = values[described["graph"][-1][1]]
        assert np.median(np.abs(found - expected).max(1) / np.ptp(expected)) < 1e-5
    if suffix == ".pth":
        state = torch.load(path, weights_only=True)["state_dict"]
        assert not module.load_state_dict(state).missing_keys
        module.load_state_dict(module.state_dict() | state)


def test_ranges_are_of_every_activation_and_negative_where_it_is(everything):
    _, teacher = everything
    images = np.random.default_rng(0).normal(size=(16, SIZE, SIZE, 3)).astype(np.float32)
    ranges = calibrated_on(teacher, "w4a4", images).variables["ranges"]
    lower = {name: float(found["minimum"]) for name, found in ranges.items()}
    negative = {name for name, minimum in lower.items() if minimum < 0}
    smooth = {"stem.act", "wide.act", "leaky.act", "smooth.act", "tanh.act", "bounded.act"}
    assert negative == smooth  # and no gate, no sum
    assert lower.keys() - negative == {"clipped.act", "relu", "head.1", "relu_2"}


def test_a_written_out_activation_is_one_function():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

        def forward(self, x):
            x = self.bn(self.conv(x))
            x = x * F.relu6(x + 3) / 6
            x = x * torch.sigmoid(x)
            x = x * (F.relu6(x + 3) / 6)
            y = F.relu6(x + 3) / 6
            return self.fc((y * 2).mean((2, 3)))

    teacher = adadfq_jax.from_torch(nets.disturb(Written()), image_size=SIZE, **HALF)
    kinds = [node.op for node in teacher.module.nodes]
    assert kinds == [
        *("conv", "norm", "hardswish", "silu", "hardswish", "hardsigmoid", "scale", "mean", "dense")
    ]


def test_a_network_of_grey_images(tmp_path):
    module = nets.disturb(Everything(channels=1))
    teacher = adadfq_jax.from_torch(module, image_size=SIZE, mean=(0.4,), std=(0.2,), name="Grey")
    assert (teacher.mean, teacher.std, teacher.channels) == ((0.4,), (0.2,), 1)
    save_teacher(teacher, tmp_path / "grey.safetensors")
    assert load_teacher(tmp_path / "grey.safetensors").module == teacher.module
    grey = np.random.default_rng(0).normal(size=(2, SIZE, SIZE, 1)).astype(np.float32)
    with torch.no_grad():
        expected = module(torch.from_numpy(grey.transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(teacher(grey), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(TeacherError, match="of 1 channel, but mean and std have 3 numbers"):
        adadfq_jax.from_torch(module, image_size=SIZE, **HALF)


class Small(nn.Module):
    """A convolution, a BatchNorm and a dense layer, between which a function can stand."""

    def __init__(self, between=None, before=None):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.gamma, self.gain = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.tensor(1.5))
        self.between, self.before = between, before

    def forward(self, x):
        x = x if self.before is None else self.before(x)
        x = F.relu(self.bn(self.conv(x)))
        x = x if self.between is None else self.between(self, x)
        return self.fc(x.mean((2, 3)))


def folded():
    module = Small().eval()
    module.conv = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv, module.bn)
    module.bn = nn.Identity()
    return module.eval()


def under_autocast(self, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = F.conv2d(x, torch.ones(4, 4, 1, 1))
    return x.float()


def change_of_a_part(self, x):
    x[:, :2].mul_(-1)
    return x


def pooled_places(x):
    value, places = F.adaptive_max_pool2d(x, 1, return_indices=True)
    return value + places


@torch.no_grad()
def without_gradient(x):
    return x * 2


def standardised():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias)

    module = Small()
    module.conv = Standardised(3, 4, 3)
    return module.eval()


def called_image():
    layers = parts(image=nn.Conv2d(3, 3, SIZE), bn=nn.BatchNorm2d(3), flat=nn.Flatten())
    return nn.Sequential(layers).eval()


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(Small().eval(), torch.zeros(1, 3, SIZE, SIZE))


def branching(x):
    return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Small().train(), r"Small is in training mode: call its eval\(\) first"),
        (lambda: Small(before=branching).eval(), r"control flow .*test_from_torch.py, line \d+: "),
        (folded, "without BatchNorm.* such as 'bn', are folded into the convolutions"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 12), nn.Flatten()).eval(), "it normalises nothing"),
        (
            lambda: Small(lambda self, x: torch.sort(x, 1).values).eval(),
            r"computes sort \(.*test_from_torch.py, line \d+: .*\), which is not understood; "
            "understood are convolutions, .* bilinear upsampling.$",
        ),
        (lambda: Small(lambda self, x: x[:, [1, 0, 2, 3]]).eval(), "computes index "),
        (lambda: Small(lambda self, x: x - self.gamma).eval(), "sub with the tensor 'gamma'"),
        (lambda: Small(lambda self, x: x / self.gamma).eval(), "by what is no number"),
        (lambda: Small(lambda self, x: torch.div(x, 2, rounding_mode="floor")).eval(), "rounding"),
        (lambda: Small(lambda self, x: F.dropout(x)).eval(), "training=self.training"),
        (lambda: Small(lambda self, x: x.double().float()).eval(), "to in float64"),
        (lambda: Small(under_autocast).eval(), "a part under torch.autocast"),
        (lambda: Small(change_of_a_part).eval(), "mul in place on a part of a tensor that is read"),
        (lambda: Small(lambda self, x: pooled_places(x)).eval(), "a second result of adaptive_max"),
        (standardised, "mean with the tensor 'conv.weight', which is no layer's"),
        (scripted, "compiled by TorchScript: give the module"),
        (lambda: Small().to("meta").eval(), "'gamma' is on the device 'meta'"),
        (lambda: nn.Sequential(nn.LazyConv2d(3, 3)).eval(), "'0.weight' has no shape yet"),
        (called_image, "'image' cannot be a node's name: the network's input has it"),
        (lambda: Small(lambda self, x: x * self.gamma).eval(), "the tensor 'gamma'"),
        (lambda: Small(lambda self, x: self.bn(x)).eval(), "parameters of bn, used twice"),
        (lambda: Small(lambda self, x: x.softmax(1)).eval(), "computes softmax"),
        (lambda: Small(lambda self, x: x[:, :, 1:, 1:]).eval(), "of pixels from the middle"),
        (lambda: Small(lambda self, x: x.flip(2)).eval(), "computes flip"),
        (lambda: Small(lambda self, x: x.transpose(2, 3)).eval(), "of other axes than a channel"),
        (lambda: Small(lambda self, x: x.view(2, 4, 20, 5)).eval(), "values in another order"),
        (lambda: nn.Sequential(Small(), nn.Unflatten(1, (3, 1))).eval(), "returns no logits"),
        (lambda: nn.Sequential(*list(Small().children())[:2]).eval(), "returns no logits"),
        (lambda: nn.Conv2d(4, 3, 3).eval(), "takes images of 4 channels"),
        (lambda: nn.Linear(12, 3).eval(), "without BatchNorm"),
        (lambda: nn.Conv2d(3, 3, 30).eval(), r"cannot take images \(3, 12, 12\)"),
        (lambda: "resnet18.pth", "takes a torch.nn.Module, not 'resnet18.pth'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(make, message, capfd):
    module = make()
    with pytest.raises(TeacherError, match=message) as caught:
        adadfq_jax.from_torch(module, image_size=SIZE, **HALF)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("between", "kinds"),
    [
        (lambda self, x: x * torch.tensor(2.0) + 1, ["scale", "scale"]),
        (lambda self, x: torch.tensor(2.0) - x, ["scale"]),
        (lambda self, x: self.gain * x, ["scale"]),
        (lambda self, x: 1 - torch.sigmoid(x), ["sigmoid", "scale"]),
        (lambda self, x: x - torch.sigmoid(x), ["sigmoid", "scale", "add"]),
        (lambda self, x: -x, ["scale"]),
        (lambda self, x: x * x.amax((2, 3), keepdim=True).expand_as(x), ["max_pool", "multiply"]),
        (
            lambda self, x: x.sum((2, 3), keepdim=True).expand(-1, -1, 5, 5),
            ["mean", "reshape", "scale", "resample"],
        ),
        (lambda self, x: x.amax((2, 3))[:, :, None, None], ["max_pool", "reshape", "reshape"]),
        (lambda self, x: F.adaptive_max_pool2d(x, 1), ["max_pool"]),
        (lambda self, x: F.adaptive_max_pool2d(x, (5, 2)), ["max_pool"]),
        (lambda self, x: without_gradient(x), ["scale"]),
        (lambda self, x: x.float(), []),
    ],
)
def test_other_ways_to_write_what_is_understood(between, kinds):
    module = nets.disturb(Small(between))
    teacher = adadfq_jax.from_torch(module, image_size=SIZE, **HALF)
    assert [node.op for node in teacher.module.nodes][3:-2] == kinds


@pytest.mark.parametrize("make", [lambda x: [x], lambda x: (x,), lambda x: {"logits": x}])
def test_logits_may_be_returned_in_a_container(make):
    class Container(Small):
        def forward(self, x):
            return make(super().forward(x))

    assert (
        adadfq_jax.from_torch(nets.disturb(Container()), image_size=SIZE, **HALF).module.classes
        == 3
    )


def test_a_compiled_module_is_read_as_the_one_that_was_compiled():
    module = nets.disturb(Small())
    teacher = adadfq_jax.from_torch(torch.compile(module, backend="eager"), image_size=SIZE, **HALF)
    assert teacher.architecture == "Small"
    assert teacher.module == adadfq_jax.from_torch(module, image_size=SIZE, **HALF).module


def test_the_proof_says_what_else_logits_depend_on():
    class Counting(Small):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return super().forward(x) * self.calls

    with pytest.raises(VerificationError, match="called again on the same images"):
        adadfq_jax.from_torch(nets.disturb(Counting()), image_size=SIZE, **HALF)
    module = nets.disturb(Small(lambda self, x: x * x.shape[0]))
    with pytest.raises(VerificationError, match="depend on the other images"):
        adadfq_jax.from_torch(module, image_size=SIZE, **HALF)


def test_what_is_stated_is_checked():
    module = nets.disturb(Small())
    assert adadfq_jax.from_torch(module, image_size=SIZE, mean=0.5, std=0.25).mean == (0.5,) * 3
    with pytest.raises(ConfigError, match="give another name"):
        adadfq_jax.from_torch(module, image_size=SIZE, name="resnet18", **HALF)
    with pytest.raises(TeacherError, match="at least 1"):
        adadfq_jax.from_torch(module, image_size=-1, **HALF)
    with pytest.raises(TeacherError, match="give image_size, mean and std"):
        adadfq_jax.from_torch(module, image_size=SIZE, mean=(), std=())
    module.bn.running_var[0] = -1
    with pytest.raises(TeacherError, match="negative variances"):
        adadfq_jax.from_torch(module, image_size=SIZE, **HALF)
    module.bn.running_var[0] = torch.inf
    with pytest.raises(TeacherError, match="infinite or not-a-number"):
        adadfq_jax.from_torch(module, image_size=SIZE, **HALF)


def test_a_network_that_is_read_wrongly_is_not_returned(monkeypatch):
    def wrong(reader, call):
        name = reader.name_of(call, "relu")
        return reader.add("relu", name, [call.value("self")], largest=0.1)

    monkeypatch.setitem(READERS, "relu", wrong)
    with pytest.raises(
        VerificationError, match=r"Small was not read .* of the largest, in float64"
    ):
        adadfq_jax.from_torch(nets.disturb(Small()), image_size=SIZE, **HALF)


def test_rounding_is_told_from_mistakes_in_float64(monkeypatch):
    module = nets.disturb(Small())
    teacher = adadfq_jax.from_torch(module, image_size=SIZE, **HALF)
    monkeypatch.setattr(original, "_LARGEST_DIFFERENCE", 0.0)
    assert original.prove(teacher, module) < 1e-12


def test_an_operation_in_place_changes_what_is_read_later():
    def between(self, x):
        y = x - 0.5
        F.relu_(y)
        return x + y

    teacher = adadfq_jax.from_torch(nets.disturb(Small(between)), image_size=SIZE, **HALF)
    last = {node.name: node for node in teacher.module.nodes}["add"]
    assert last.inputs == ("relu", "relu_2")


def test_a_part_that_changes_with_the_whole_is_noticed():
    """Nothing in PyTorch's program says so; the logits do."""

    def between(self, x):
        y = x[:, :2]
        x.mul_(-1)
        return torch.cat([y, x[:, 2:]], 1)

    with pytest.raises(VerificationError, match="was not read as what it is"):
        adadfq_jax.from_torch(nets.disturb(Small(between)), image_size=SIZE, **HALF)


@pytest.mark.filterwarnings("ignore")
def test_a_users_own_class_in_a_notebook(tmp_path, monkeypatch, capsys):
    """The example of the documentation, as it stands there."""
    text = (ROOT / "adadfq_jax" / "teachers" / "README.md").read_text()
    example = text.partition("```python\n")[2].partition("```")[0]
    assert example.count("\n") <= 24
    monkeypatch.chdir(tmp_path)
    exec(example, {"__name__": "__main__"})
    assert (tmp_path / "mine.onnx").exists()
    assert capsys.readouterr().out.strip().endswith("(8, 10)")


@pytest.mark.parametrize("network", zoo.FAST)
def test_networks_of_pytorchcv(network):
    row = zoo.read(network)
    assert row.difference < 1e-4
    assert row.macs > 1e6


@pytest.mark.packages
@pytest.mark.parametrize("network", [name for name in zoo.NETWORKS if name not in zoo.FAST])
def test_networks_of_packages(network):
    """Needs the extra `zoo`."""
    assert zoo.read(network).difference < 1e-4


@pytest.mark.packages
@pytest.mark.parametrize("network", zoo.REFUSED)
def test_networks_without_batch_norm(network):
    """Needs the extra `zoo`."""
    with pytest.raises(TeacherError, match=zoo.REFUSED[network]):
        adadfq_jax.from_torch(zoo.build(network), image_size=224, **HALF)


def test_a_file_that_is_not_recognised_says_how_to_give_the_network(tmp_path):
    torch.save(nets.disturb(Small()).state_dict(), tmp_path / "small.pth")
    with pytest.raises(TeacherError, match=r"adadfq_jax.from_torch\(module, image_size="):
        load_teacher(tmp_path / "small.pth", image_size=SIZE, **HALF)
    assert issubclass(ExportError, adadfq_jax.AdaDFQError)
