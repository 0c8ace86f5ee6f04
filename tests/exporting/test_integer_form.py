"""The integer form of ONNX: the student still, and in integers where engines can."""

import dataclasses
import json
import os
import subprocess
import sys
import venv

import jax
import numpy as np
import onnx
import onnx.reference
import pytest
from flax.core import FrozenDict

import adadfq_jax
from adadfq_jax.cli import main, speed
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import ConfigError, ExportError
from adadfq_jax.exporting import engines, onnx_integer_layers, onnx_qdq, quantized
from adadfq_jax.exporting.onnx_options import OnnxOptions
from adadfq_jax.models.graph import GraphNetwork, Node
from adadfq_jax.models.network import flatten, normalize, unflatten
from adadfq_jax.models.tracing import trace
from adadfq_jax.quantization.bits import assign_bits, parse_bits
from adadfq_jax.teachers.load import save_teacher
from adadfq_jax.teachers.normalisation import NORMALISATIONS
from adadfq_jax.training.calibrated import calibrated_on
from tests import ROOT
from tests.conftest import SIZE, make_teacher


def make_images(size=SIZE, count=16):
    return np.random.default_rng(0).normal(0, 1, (count, size, size, 3)).astype(np.float32)


def make_student(bits="w4a4", architecture="resnet8_cifar", size=SIZE):
    return calibrated_on(
        make_teacher(architecture=architecture, size=size), bits, make_images(size)
    )


def write(student, **options):
    """Returns (an ONNX model of a student, what it says of itself)."""
    model = onnx_qdq.build(quantized.take_apart(student), {}, OnnxOptions(**options))
    return model, json.loads(model.metadata_props[0].value)


def differences(model, student, images, engine="onnxruntime"):
    session = engines.open_session(model.SerializeToString(), engine)
    expected = np.asarray(student(images))
    found = session.answer(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return np.abs(found - expected).max(1) / np.ptp(expected)


@pytest.fixture(scope="module")
def student():
    return make_student()


def test_layers_between_quantizers_are_integers(student):
    model, described = write(student)
    constants = {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}
    between = {f"stage{stage}_block1/conv1" for stage in (1, 2, 3)}
    session = engines.open_session(model.SerializeToString(), "onnxruntime")
    assert session.integer_layers() == between
    layers = onnx_qdq.layers(model.SerializeToString())
    assert set(layers) == between | set(described["not_integer"])
    assert described["not_integer"]["stem_conv"] == "its input is not quantized"
    assert described["not_integer"]["stage1_block1/conv2"] == "its output is not quantized"
    for layer in between:
        assert constants[f"{layer}/codes"].dtype == np.int8
        assert not constants[f"{layer}/zero_point"].any()
        # What INT8 has room for, for the sake of the bias.
        assert np.abs(constants[f"{layer}/codes"].astype(int)).max() > 63
    assert constants["stage1_block1/relu1/largest"] == 15
    operations = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in operations


@pytest.mark.parametrize("bits", ["w1a2", "w3a3", "w5a5", "w6a6"])
def test_rounding_of_a_bias_changes_no_code(bits):
    student = make_student(bits)
    model, _ = write(student)
    assert np.median(differences(model, student, make_images(count=64))) < 1e-6


@pytest.mark.parametrize("lowest", [0, -6])
def test_a_bias_is_moved_to_where_no_limit_is_crossed(lowest):
    chance = np.random.default_rng(1)
    bias, step = chance.normal(0, 0.5, 64), np.float32(0.13)
    unit = chance.uniform(1e-4, 4e-4, 64).astype(np.float32)
    factor = np.full(64, 15)
    limits = (np.arange(15) + 0.5 + lowest) * float(step)
    whole, units, moved = onnx_integer_layers._whole_bias(bias, unit, factor, limits)
    assert moved == 0
    sums = 15 * np.arange(-2000, 3000)[:, None]

    def codes(bias, unit):
        rounded = np.rint((sums + bias) * unit.astype(np.float64) / step)
        return np.clip(rounded, lowest, lowest + 15)

    expected = codes(bias / unit, unit)
    np.testing.assert_array_equal(codes(whole, units), expected)
    assert (codes(np.rint(bias / unit), unit) != expected).any()


def test_storage_of_4_bits(student, tmp_path):
    images = make_images()
    small, _ = write(student, storage="uint4")
    usual, _ = write(student)
    assert small.opset_import[0].version == 21
    types = {entry.name: entry.data_type for entry in small.graph.initializer}
    assert types["stage1_block1/conv1/codes"] == onnx.TensorProto.UINT4
    session = engines.open_session(small.SerializeToString(), "onnxruntime")
    assert "stage1_block1/conv1" in session.integer_layers()
    assert np.median(differences(small, student, images)) < 1e-6
    codes = sum(np.prod(entry.dims) for entry in usual.graph.initializer if "codes" in entry.name)
    assert small.ByteSize() < usual.ByteSize() - 0.4 * codes
    report = adadfq_jax.export(student, tmp_path / "s.onnx", images=images)
    written = dict(report.notes)
    assert written["form"] == "integer"
    assert written["with --storage=uint4"].endswith(" bytes")
    assert "its input is not quantized: classifier, stem_conv" in report.to_text()


def test_8_bit_weights_have_an_offset_and_a_warning(tmp_path):
    student = make_student("w8a8")
    model, described = write(student)
    reasons = described["not_integer"]
    assert "an offset is added" in reasons["stage1_block1/conv1"]
    assert "stage1_block1/conv2" in described["saturating"]
    assert np.median(differences(model, student, make_images())) < 1e-3
    _, safe = write(make_student("w6a8"))
    assert safe["saturating"] == []
    _, safe = write(make_student("w8a7"))
    assert safe["saturating"] == []
    report = adadfq_jax.export(student, tmp_path / "s.onnx", images=make_images())
    assert "processors without VNNI" in report.to_text()


@pytest.mark.parametrize("architecture", ["mobilenet_v2_x0.25", "resnet18_x0.125"])
def test_depthwise_layers_and_pools(architecture):
    student = make_student("w8a4", architecture, 32)
    model, _ = write(student)
    assert np.median(differences(model, student, make_images(32))) < 1e-5
    order = [node.op_type for node in model.graph.node]
    if "MaxPool" in order:  # before the quantizer
        assert order.index("MaxPool") < order.index("QuantizeLinear")


def test_padding_that_is_an_operation_of_its_own():
    """Behind it onnxruntime still sees codes, and would round the layer's float weights anew."""
    teacher, nodes = make_teacher(), []
    for node in trace(teacher.module, SIZE):
        if node.op == "conv" and node.name.endswith("conv1"):
            padding = node.attributes["padding"]
            pad = FrozenDict({"padding": padding, "value": 0.0})
            nodes.append(Node("pad", f"{node.name}_pad", node.inputs, pad))
            without = FrozenDict(dict(node.attributes) | {"padding": ((0, 0), (0, 0))})
            node = Node("conv", node.name, (f"{node.name}_pad",), without)
        nodes.append(node)
    teacher = dataclasses.replace(
        teacher, architecture="padded", module=GraphNetwork(tuple(nodes), teacher.classes)
    )
    student = calibrated_on(teacher, "w4a4", make_images())
    model, _ = write(student)
    assert np.median(differences(model, student, make_images())) < 1e-6


@pytest.mark.parametrize(
    ("options", "format", "words"),
    [
        ({"form": "fast"}, "onnx", "unknown form 'fast'"),
        ({"storage": "uint2"}, "onnx", "unknown storage 'uint2'"),
        ({"form": "exact", "storage": "uint4"}, "onnx", "an option of the integer form"),
        ({"opset": 12}, "onnx", "opset must be from 13 to"),
        ({"opset": 20, "storage": "uint4"}, "onnx", "opset must be from 21 to"),
        ({"form": "exact"}, "integers", "form: an option of onnx, not of integers"),
    ],
)
def test_options_that_cannot_be(options, format, words):
    with pytest.raises(ConfigError, match=words):
        OnnxOptions(**options).check(format)


def test_a_form_that_a_network_cannot_have(student):
    teacher = quantized.take_apart(make_teacher())
    with pytest.raises(ConfigError, match="a teacher in full precision has no integers"):
        onnx_qdq.build(teacher, {}, OnnxOptions(form="integer"))
    with pytest.raises(ConfigError, match="codes of 4 bits need opset 21"):
        write(student, form="exact", opset=13)


@pytest.fixture(scope="module")
def file(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "s.onnx"
    adadfq_jax.export(student, path, images=make_images())
    save_teacher(make_teacher(), path.with_name("teacher.safetensors"))
    return path


def test_engines_are_known_or_refused(file, monkeypatch):
    with pytest.raises(ConfigError, match="unknown engine 'tensorrt'"):
        adadfq_jax.load_exported(file, "tensorrt")
    monkeypatch.setattr(engines, "installed", lambda: ["onnxruntime"])
    with pytest.raises(ExportError, match=r"to run files in openvino: .*--with=openvino"):
        adadfq_jax.load_exported(file, "openvino")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="an engine runs files of ONNX"):
        adadfq_jax.load_exported(file.with_name("teacher.safetensors"), "onnxruntime")
    with pytest.raises(ExportError, match="onnxruntime cannot run this model"):
        engines.open_session(b"", "onnxruntime")


def test_a_file_is_timed_beside_its_teacher(file, capsys):
    argv = [f"--model={file}", f"--against={file.with_name('teacher.safetensors')}"]
    argv += ["--engine=onnxruntime", "--threads=1", "--steps=1", "--rounds=2"]
    assert main.run(["benchmark", *argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["batch_size"]) for row in found["rows"]] == [
        ("file", 1),
        ("teacher", 1),
        ("file", 32),
        ("teacher", 32),
    ]
    assert all(row["images_per_second"] > 0 for row in found["rows"])
    assert [row["ratio"] for row in found["rows"]][1::2] == [1, 1]
    assert "stage1_block1/conv1" in found["integer_layers"]["onnxruntime"]
    text = speed.speed_table(found)
    assert (
        f"onnxruntime computes 3 of {len(found['float_layers']['onnxruntime']) + 3} layers" in text
    )
    assert "stem_conv, classifier: its input is not quantized" in text


def test_what_cannot_be_timed(file, sentence):
    for argv, words in (
        ([], "give either --config=NAME or --model=FILE"),
        (["--model=s.onnx", "--config=configs/digits_resnet20.py"], "give either --config"),
        (["--model=s.onnx"], "there is no file 's.onnx'"),
        (["--model=s.safetensors"], "only files of ONNX"),
        ([f"--model={file}", "--engine=tensorrt"], "unknown engine 'tensorrt'"),
        ([f"--model={file}", "--profile=x"], "--profile is of a run"),
        (["--config=configs/digits_resnet20.py", "--threads=1"], "--engine and --threads are of"),
    ):
        assert words in sentence(["benchmark", *argv])


# ---- OpenVINO, where it is installed ---------------------------------------------------------


needs_openvino = pytest.mark.skipif(
    "openvino" not in engines.installed(), reason="openvino is not installed"
)


@needs_openvino
@pytest.mark.parametrize("bits", ["w4a4", "w8a8"])
def test_openvino_computes_all_that_is_quantized_in_integers(bits, tmp_path):
    student = make_student(bits)
    model, _ = write(student)
    layers = set(onnx_qdq.layers(model.SerializeToString()))
    session = engines.open_session(model.SerializeToString(), "openvino", threads=1)
    assert session.integer_layers() == layers - {"stem_conv", "classifier"}
    usual = np.median(differences(model, student, make_images(), "openvino"))
    assert usual < (1e-6 if bits == "w4a4" else 1e-3)
    report = adadfq_jax.export(student, tmp_path / "s.onnx", images=make_images())
    assert [engine for engine, _ in report.others] == ["openvino"]


def without_vnni(model, images, folder):
    """Returns OpenVINO's logits in a process that sees a processor as it was before VNNI."""
    onnx.save(model, folder / "s.onnx")
    np.save(folder / "images.npy", images)
    program = (
        "import sys, numpy as np; from adadfq_jax.exporting import engines\n"
        "folder = sys.argv[1] + '/'; content = open(folder + 's.onnx', 'rb').read()\n"
        "session = engines.open_session(content, 'openvino')\n"
        "images = np.load(folder + 'images.npy').transpose(0, 3, 1, 2)\n"
        "np.save(folder + 'logits.npy', session.answer(np.ascontiguousarray(images)))\n"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    subprocess.run([sys.executable, "-c", program, folder], env=environment, check=True)
    return np.load(folder / "logits.npy")


@needs_openvino
@pytest.mark.engines
@pytest.mark.parametrize("bits", ["w4a4", "w6a8", "w8a7"])
def test_sums_that_are_safe_without_vnni(bits, tmp_path):
    """In the widest products that a layer can have, on a processor as it was before VNNI."""
    student = make_student(bits)
    images = 3 * make_images()
    model, described = write(student)
    assert not described["saturating"]
    session = engines.open_session(model.SerializeToString(), "openvino")
    expected = session.answer(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    found = without_vnni(model, images, tmp_path)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


@needs_openvino
@pytest.mark.engines
def test_sums_that_a_file_warns_of_are_wrong_without_vnni(tmp_path):
    """255 times 127 twice is more than 16 bits hold: what `saturating` names is no mere caution."""
    teacher, layer = make_teacher(), "stage1_block1/conv2"
    arrays = flatten(teacher.variables)
    kernel = np.ones_like(arrays[f"params/{layer}/kernel"])
    kernel[0, 0, 0] = -1
    norm = "stage1_block1/norm1"  # which makes every activation the largest, but for one channel
    arrays[f"params/{layer}/kernel"] = kernel
    arrays[f"params/{norm}/scale"] = np.zeros_like(arrays[f"params/{norm}/scale"])
    arrays[f"params/{norm}/bias"] = np.ones_like(arrays[f"params/{norm}/bias"])
    arrays[f"params/{norm}/bias"][0] = 0
    after = "params/stage1_block1/norm2/scale"  # negative, it would turn the codes around
    arrays[after] = np.abs(arrays[after])
    teacher = dataclasses.replace(teacher, variables=unflatten(arrays))
    images = make_images()
    student = calibrated_on(teacher, "w8a8", images)
    model, described = write(student)
    assert layer in described["saturating"]
    expected = np.asarray(student(images))
    assert np.median(differences(model, student, images, "openvino")) < 1e-2
    found = without_vnni(model, images, tmp_path)
    assert np.median(np.abs(found - expected).max(1) / np.ptp(expected)) > 0.1


# ---- Other versions, and real images ---------------------------------------------------------


@pytest.mark.engines
def test_onnxruntime_1_17_runs_the_file(student, tmp_path):
    """In an environment of its own, because it wants NumPy before 2."""
    venv.create(tmp_path / "old", with_pip=True)
    python = tmp_path / "old" / "bin" / "python"
    packages = ["onnxruntime==1.17.*", "numpy<2"]
    made = subprocess.run([python, "-m", "pip", "install", "-q", *packages], capture_output=True)
    if made.returncode:
        pytest.skip("onnxruntime 1.17 cannot be installed here")
    images = make_images()
    model, _ = write(student)
    onnx.save(model, tmp_path / "s.onnx")
    np.save(tmp_path / "images.npy", images.transpose(0, 3, 1, 2))
    program = (
        "import sys, numpy as np, onnxruntime\n"
        "assert onnxruntime.__version__.startswith('1.17')\n"
        "folder = sys.argv[1] + '/'; session = onnxruntime.InferenceSession(folder + 's.onnx')\n"
        "(logits,) = session.run(None, {'image': np.load(folder + 'images.npy')})\n"
        "np.save(folder + 'logits.npy', logits)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-c", program, tmp_path], env=environment, check=True)
    expected = np.asarray(student(images))
    found = np.load(tmp_path / "logits.npy")
    assert np.median(np.abs(found - expected).max(1) / np.ptp(expected)) < 1e-6


SHARED = ROOT.parent / "shared"


@pytest.mark.real_data
@pytest.mark.skipif(not SHARED.exists(), reason="the real CIFAR-10 teacher is not at ../shared")
@pytest.mark.parametrize("bits", ["w3a3", "w4a4", "w5a5", "w8a8", "w4a8"])
def test_top1_on_real_images(bits, capsys):
    """Of calibrated students with 8-bit edges, in every engine that is installed."""
    mean, std = NORMALISATIONS["imagenet"]
    path = SHARED / "teachers" / "resnet20_cifar10.th"
    teacher = adadfq_jax.load_teacher(path, "resnet20_cifar", mean=mean, std=std)
    dataset = load_dataset("npz", SHARED / "data" / "cifar10_test.npz")
    student = calibrated_on(teacher, bits, dataset.sample(256).images(teacher))
    edges = ("stem_*=w8a8", "classifier=w8")
    assigned = assign_bits(student.variables["bits"], *parse_bits(bits), edges)
    variables = student.variables | {"bits": jax.tree.map(np.asarray, assigned)}
    student = dataclasses.replace(student, variables=variables)
    model, _ = write(student)
    pixels, labels = (np.load(SHARED / "data" / "cifar10_test.npz")[name] for name in "xy")

    def count(answer):
        batches = np.array_split(np.arange(len(labels)), 20)
        return sum(int((answer(pixels[at]).argmax(1) == labels[at]).sum()) for at in batches)

    expected = count(lambda batch: np.asarray(student(batch)))
    found = {}
    for engine in engines.installed():
        session = engines.open_session(model.SerializeToString(), engine)

        def answer(batch, session=session):
            images = np.asarray(normalize(batch, mean, std)).transpose(0, 3, 1, 2)
            return session.answer(np.ascontiguousarray(images))

        found[engine] = count(answer)
    with capsys.disabled():
        print(f"\n{bits}: student {expected} of {len(labels)}, {found}")
    assert all(abs(right - expected) <= 5 for right in found.values())
