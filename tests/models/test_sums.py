"""Quantizers of what residual sums and convolutions read, and kernels with signed codes."""

import jax
import numpy as np
import pytest

import adadfq_jax
from adadfq_jax.config.fields import default_config
from adadfq_jax.errors import ConfigError
from adadfq_jax.exporting import engines, onnx_qdq, quantized
from adadfq_jax.models import registry
from adadfq_jax.models.graph import INPUT
from adadfq_jax.models.operations import OPERATIONS
from adadfq_jax.models.sums import with_quantized_sums
from tests.conftest import SIZE, assert_exported, make_small_config, make_teacher

IMAGES = np.random.default_rng(0).normal(size=(8, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The student of a run with both, its teacher, and its folder."""
    config = make_small_config()
    config.game.method = "adadfq_plus"
    config.quant.sums = config.quant.symmetric_weights = True
    # With 8 bits an ONNX file rounds biases, which moves a code here and there.
    config.quant.overrides = ("*_quantized=a3",)
    config.calibration_epochs, config.warmup_epochs, config.epochs = 1, 1, 2
    workdir = tmp_path_factory.mktemp("sums")
    teacher = make_teacher()
    return adadfq_jax.quantize(config, teacher, workdir=workdir), teacher, workdir


@pytest.mark.parametrize(
    ("architecture", "added"),
    [
        # Both ends of a block's second convolution: its output, and the shortcut where that is a
        # projection.
        ("resnet8_cifar", {f"stage{stage}_block1/norm2" for stage in (1, 2, 3)}),
        (
            "resnet18_x0.125",
            {f"stage{stage}_block{block}/norm2" for stage in (1, 2, 3, 4) for block in (1, 2)}
            | {f"stage{stage}_block1/shortcut_norm" for stage in (2, 3, 4)},
        ),
    ],
)
def test_what_is_quantized_besides(architecture, added):
    module = with_quantized_sums(registry.build(architecture, 10), 32)
    assert {node.inputs[0] for node in module.nodes if node.op == "quantizer"} == added


def test_every_convolution_reads_codes():
    """Also of a linear bottleneck, which ends in no activation function."""
    nodes = with_quantized_sums(registry.build("mobilenet_v2_x0.25", 10), 32).nodes
    by_name = {node.name: node for node in nodes}
    for node in nodes:
        if node.op in ("conv", "add"):
            for name in node.inputs:
                assert name == INPUT or OPERATIONS[by_name[name].op].activation, node


def test_the_teacher_stays_as_it_is():
    teacher = make_teacher()
    module = with_quantized_sums(teacher.module, SIZE)
    np.testing.assert_array_equal(
        jax.jit(module.apply)(teacher.variables, IMAGES),
        jax.jit(teacher.module.apply)(teacher.variables, IMAGES),
    )


def test_a_run_learns_with_both(played):
    student, teacher, workdir = played
    quantizer = student.variables["ranges"]["stage1_block1"]["norm2_quantized"]
    assert quantizer["minimum"] < 0 < quantizer["maximum"]
    assert student.variables["bits"]["stage1_block1"]["norm2_quantized"]["activation"] == 3
    start = teacher.variables["params"]["stage1_block1"]["conv1"]["kernel"]
    assert np.abs(student.variables["params"]["stage1_block1"]["conv1"]["kernel"] - start).max() > 0
    parts = quantized.take_apart(student)
    assert {int(point) for part in parts.weights.values() for point in part.zero_point} == {-8}
    again = adadfq_jax.load_student(workdir)
    np.testing.assert_array_equal(again(IMAGES), student(IMAGES))


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".stablehlo", ".pth"])
def test_such_a_student_is_exported(played, tmp_path, suffix):
    student, _, _ = played
    assert_exported(student, tmp_path / f"student{suffix}", IMAGES)


def test_its_convolutions_are_integers(played):
    student, _, _ = played
    model = onnx_qdq.build(quantized.take_apart(student), {})
    content = model.SerializeToString()
    session = engines.open_session(content, "onnxruntime")
    layers = set(onnx_qdq.layers(content))
    assert session.integer_layers() == layers - {"stem_conv", "classifier"}


def test_one_bit_has_no_signed_codes():
    config = default_config("w4a4")
    config.quant.symmetric_weights = True
    config.quant.overrides = ("stage1_*=w1",)
    with pytest.raises(
        ConfigError, match="needs weights of 2 bits or more, and stage1_block1/conv1"
    ):
        adadfq_jax.quantize(config, make_teacher())
