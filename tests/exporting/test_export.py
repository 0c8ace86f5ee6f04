"""Exported files are the student: bit for bit where the program is ours, to rounding elsewhere."""

import dataclasses
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import safetensors
import safetensors.numpy
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import adadfq_jax
from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST
from adadfq_jax.cli import main
from adadfq_jax.cli.evaluate import Measured
from adadfq_jax.config.fields import FORMAT_BY_SUFFIX
from adadfq_jax.data.load import load_dataset
from adadfq_jax.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ExportError,
    VerificationError,
)
from adadfq_jax.evaluation.accuracy import evaluate
from adadfq_jax.evaluation.health import Answers
from adadfq_jax.exporting import (
    integer_check,
    integers,
    numpy_reader,
    onnx_qdq,
    quantized,
    verification,
)
from adadfq_jax.exporting.description import read_about
from adadfq_jax.exporting.onnx_options import FORMS, OnnxOptions
from adadfq_jax.models.network import flatten, unflatten
from adadfq_jax.models.size import packed_bytes
from adadfq_jax.storage.digests import checksum
from adadfq_jax.teachers.load import save_teacher
from adadfq_jax.teachers.normalisation import NORMALISATIONS
from adadfq_jax.training import quantize
from adadfq_jax.training.calibrated import calibrated_on
from adadfq_jax.training.student import load_student
from tests import ROOT
from tests.conftest import SIZE, make_small_config, make_teacher

random = np.random.default_rng(0)


def make_images(size, count=16):
    return random.normal(0, 1, (count, size, size, 3)).astype(np.float32)


def make_student(bits="w4a4", architecture="resnet8_cifar", size=SIZE, teacher=None):
    teacher = teacher or make_teacher(architecture=architecture, size=size)
    return calibrated_on(teacher, bits, make_images(size))


def run_onnx(model, images):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (logits,) = session.run(None, {"image": images.transpose(0, 3, 1, 2)})
    return logits


def assert_close(found, expected, share=1e-4):
    """To rounding, but for an image here and there, of which a code fell on the other side."""
    differences = np.abs(np.asarray(found) - expected).max(1) / np.ptp(expected)
    assert np.median(differences) < 1e-5
    assert np.mean(differences < share) >= 0.75


def assert_close_at_224(found, expected):
    """Of the millions of activations of such an image, some always lie between two codes."""
    differences = np.abs(np.asarray(found) - expected).max(1) / np.ptp(expected)
    assert np.median(differences) < 0.02
    assert differences.max() < 0.1


@given(st.integers(1, 8), st.integers(1, 40), st.randoms(use_true_random=False))
def test_codes_are_packed_without_gaps(bits, count, chance):
    codes = np.array([chance.randrange(2**bits) for _ in range(count)], np.uint8)
    packed = integers.pack(codes, bits)
    assert packed.size == -(-count * bits // 8)
    number = int.from_bytes(packed.tobytes(), "little")
    assert [number >> (i * bits) & (2**bits - 1) for i in range(count)] == codes.tolist()
    np.testing.assert_array_equal(integers.unpack(packed, bits, codes.shape), codes)


@pytest.mark.parametrize(
    ("bits", "architecture", "size", "suffixes"),
    [
        ("w3a3", "resnet8_cifar", 8, (".safetensors", ".onnx", ".stablehlo", ".pth")),
        ("w8a8", "resnet8_cifar_projection", 8, (".safetensors", ".onnx")),
        ("w4a4", "resnet8_cifar_padend", 8, (".onnx",)),
        ("w4a4", "resnet8_cifar_avgpool", 8, (".safetensors", ".onnx", ".stablehlo", ".pth")),
        ("w5a4", "resnet18_x0.125", 32, (".onnx",)),
        ("w4a8", "mobilenet_v2_pytorchcv_x0.25", 32, (".onnx",)),
        *(
            pytest.param(bits, architecture, 224, (suffix,), marks=pytest.mark.imagenet)
            for bits, architecture in (("w4a4", "resnet18"), ("w8a8", "mobilenet_v2"))
            for suffix in (".safetensors", ".onnx", ".stablehlo", ".pth")
        ),
    ],
)
def test_every_format_is_the_student(tmp_path, bits, architecture, size, suffixes):
    student = make_student(bits, architecture, size)
    images = make_images(size)
    expected = np.asarray(student(images))
    close = assert_close if size < 224 else assert_close_at_224
    reports = {}
    for suffix in suffixes:
        path = tmp_path / f"student{suffix}"
        reports[suffix] = adadfq_jax.export(student, path, images=images)
        found = np.asarray(adadfq_jax.load_exported(path)(images))
        if suffix in (".safetensors", ".pth"):
            np.testing.assert_array_equal(found, expected)
        elif suffix != ".onnx" or not bits.endswith("a8"):  # of which biases are rounded
            close(found, expected)
    network = quantized.take_apart(student)
    for report in reports.values():
        sizes = [part.codes.size for part in network.weights.values()]
        assert report.code_bytes == pytest.approx(sum(sizes) * int(bits[1]) / 8, rel=0.01)
        assert report.agreement >= 0.9
    described, arrays = numpy_reader.parse(integers.to_bytes(network, {}))
    values = numpy_reader.compute_all(described, arrays, images)
    close(values[described["graph"][-1][1]], expected)


@pytest.mark.parametrize("bits", ["w2a3", "w8a8"])
def test_learned_ranges_are_exported(tmp_path, bits):
    """Of kernels, too: whose values beyond their range are clipped."""
    student = make_student(bits)
    kernels = {
        name.removeprefix("params/").removesuffix("/kernel"): array
        for name, array in flatten(student.variables).items()
        if name.endswith("/kernel")
    }
    ranges = flatten(student.variables["ranges"])
    for layer, kernel in kernels.items():
        axes = tuple(range(kernel.ndim - 1))
        # What learning might have made of them: of no symmetry, and not all around 0.
        ranges[f"{layer}/minimum"] = 0.6 * kernel.min(axes) + 0.02
        ranges[f"{layer}/maximum"] = 0.5 * kernel.max(axes) + 0.01
    student = dataclasses.replace(
        student, variables=student.variables | {"ranges": unflatten(ranges)}
    )
    images = make_images(SIZE)
    expected = np.asarray(student(images))
    network = quantized.take_apart(student)
    for layer, kernel in kernels.items():
        width = ranges[f"{layer}/maximum"] - ranges[f"{layer}/minimum"]
        step = width / (2 ** int(bits[1]) - 1)
        np.testing.assert_allclose(network.weights[layer].step, step, rtol=1e-6)
        assert (kernel > ranges[f"{layer}/maximum"]).any()
    for suffix in (".safetensors", ".onnx", ".stablehlo", ".pth"):
        path = tmp_path / f"student{suffix}"
        adadfq_jax.export(student, path, images=images)
        found = np.asarray(adadfq_jax.load_exported(path)(images))
        if suffix in (".safetensors", ".pth"):
            np.testing.assert_array_equal(found, expected)
        else:
            assert_close(found, expected)


@pytest.mark.parametrize(
    "options",
    [
        OnnxOptions(form="exact"),
        OnnxOptions(form="exact", fold_norms=True, raw_pixels=True),
        OnnxOptions(),
        OnnxOptions(storage="uint4", raw_pixels=True),
        OnnxOptions(opset=18),
    ],
    ids=str,
)
def test_onnx_options(options):
    student = make_student("w3a5")
    network = quantized.take_apart(student)
    model = onnx_qdq.build(network, {}, options)
    assert model.opset_import[0].version == (
        options.opset or (21 if options.form == "exact" or options.storage == "uint4" else 13)
    )
    operations = {node.op_type for node in model.graph.node}
    folded = options.fold_norms or options.form != "exact"
    assert ("BatchNormalization" in operations) != folded
    raw_pixels = options.raw_pixels
    pixels = random.integers(0, 256, (16, SIZE, SIZE, 3), np.uint8)
    given_images = (pixels if raw_pixels else (pixels / 255 - 0.5) / 0.25).astype(np.float32)
    expected = np.asarray(student(pixels))
    found = run_onnx(model, given_images)
    assert_close(found, expected)
    # The reference evaluator knows DequantizeLinear from opset 19; what is used means the same.
    model.opset_import[0].version = 21
    evaluator = onnx.reference.ReferenceEvaluator(model)
    (reference,) = evaluator.run(None, {"image": given_images.transpose(0, 3, 1, 2)})
    assert_close(reference, expected)


@pytest.mark.parametrize(
    ("bits", "form", "opset"),
    [("w4a8", "integer", 13), ("w4a8", "exact", 21), ("w5a3", "exact", 13), ("w8a8", "exact", 13)],
)
def test_onnx_has_the_lowest_opset_and_readable_names(bits, form, opset):
    network = quantized.take_apart(make_student(bits))
    model = onnx_qdq.build(network, {}, OnnxOptions(form=form))
    assert model.opset_import[0].version == opset
    (image,), (logits,) = model.graph.input, model.graph.output
    assert image.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert (image.name, logits.name) == ("image", "logits")
    outputs = {name for node in model.graph.node for name in node.output}
    assert {"stem_conv", "stage1_block1/conv1", "stage3_block1/relu2"} <= outputs


def awkward_teacher():
    """A teacher whose channels are all positive, all negative, constant, and zero."""
    teacher = make_teacher()
    kernel = np.array(teacher.variables["params"]["stage1_block1"]["conv1"]["kernel"])
    kernel[..., 0] = np.abs(kernel[..., 0]) + 0.5
    kernel[..., 1] = -np.abs(kernel[..., 1]) - 0.5
    kernel[..., 2] = 0.3
    kernel[..., 3] = 0
    teacher.variables["params"]["stage1_block1"]["conv1"]["kernel"] = kernel
    scale = np.array(teacher.variables["params"]["stage1_block1"]["norm1"]["scale"])
    scale[4], scale[5] = -1.2, 0
    teacher.variables["params"]["stage1_block1"]["norm1"]["scale"] = scale
    return teacher


@pytest.mark.parametrize("bits", ["w4a4", "w8a3"])
def test_awkward_channels_and_clipped_activations(bits):
    student = make_student(bits, teacher=awkward_teacher())
    images = 3 * make_images(SIZE)  # beyond the ranges
    expected = np.asarray(student(images))
    network = quantized.take_apart(student)
    np.testing.assert_array_equal(network.network(images), expected)
    weights = network.weights["stage1_block1/conv1"]
    assert (weights.zero_point[:2] > 0).tolist() == [True, False]
    np.testing.assert_allclose(weights.decode()[..., 2], 0.3, rtol=1e-6)
    np.testing.assert_array_equal(weights.decode()[..., 3], 0)
    for options in (
        OnnxOptions(form="exact"),
        OnnxOptions(form="exact", fold_norms=True),
        OnnxOptions(),
        OnnxOptions(storage="uint4"),
    ):
        assert_close(run_onnx(onnx_qdq.build(network, {}, options), images), expected)
    described, arrays = numpy_reader.parse(integers.to_bytes(network, {}))
    assert_close(numpy_reader.compute_all(described, arrays, images)["classifier"], expected)


def test_a_range_above_zero_is_shifted_in_onnx():
    student = make_student("w4a4")
    ranges = student.variables["ranges"]["stage1_block1"]["relu1"]
    ranges["minimum"] = ranges["minimum"] + np.float32(0.4)
    images = make_images(SIZE)
    for form in FORMS:
        model = onnx_qdq.build(quantized.take_apart(student), {}, OnnxOptions(form=form))
        assert_close(run_onnx(model, images), np.asarray(student(images)))


def test_integer_arithmetic():
    student = make_student("w4a4", "mobilenet_v2_x0.25", 32)
    layers, others = integer_check.check(quantized.take_apart(student), make_images(32, 2))
    assert "stage2_block1/depthwise_conv" in {layer.layer for layer in layers}
    assert {"stem_conv", "stage2_block1/expand_conv", "classifier"} <= set(others)
    assert max(layer.difference for layer in layers) < 1e-5
    assert all(layer.accumulator_bits <= 32 for layer in layers)


def test_integer_arithmetic_with_zero_points_outside_the_codes():
    student = make_student("w4a4", teacher=awkward_teacher())
    ranges = student.variables["ranges"]["stem_relu"]
    ranges["minimum"] = ranges["minimum"] - np.float32(0.2)
    layers, _ = integer_check.check(quantized.take_apart(student), make_images(SIZE, 2))
    by_name = {layer.layer: layer for layer in layers}
    # The constant channel's corrections cancel from 1e9, in float32 in the simulation.
    assert by_name["stage1_block1/conv1"].difference < 1e-3


def test_numpy_alone_runs_the_file(tmp_path):
    student = make_student("w3a3")
    adadfq_jax.export(student, tmp_path / "s.safetensors", images=make_images(SIZE))
    pixels = random.integers(0, 256, (40, SIZE, SIZE, 3), np.uint8)
    labels = np.asarray(student(pixels)).argmax(1)
    np.savez(tmp_path / "test.npz", x=pixels, y=labels)
    # Neither JAX nor safetensors nor this package can be imported there.
    program = (
        "import sys; sys.modules.update(jax=None, safetensors=None, adadfq_jax=None, flax=None);"
        f"sys.argv = ['r', r'{tmp_path / 's.safetensors'}', r'{tmp_path / 'test.npz'}'];"
        f"import runpy; runpy.run_path(r'{numpy_reader.__file__}', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert float(done.stdout.split()[1].rstrip("%")) >= 95


def test_the_numpy_reader_says_what_is_wrong(tmp_path, capsys):
    teacher, images = tmp_path / "teacher.safetensors", tmp_path / "test.npz"
    save_teacher(make_teacher(), teacher)
    np.savez(images, x=np.zeros((2, SIZE, SIZE, 3), np.float32), y=np.zeros(2, int))
    model = tmp_path / "s.safetensors"
    model.write_bytes(integers.to_bytes(quantized.take_apart(make_student()), {}))
    (tmp_path / "cut.safetensors").write_bytes(model.read_bytes()[:-100])
    assert numpy_reader.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: ")
    for words, message in (
        ([], "usage: "),
        ([model], "usage: "),
        ([teacher, images], "is no file of `adadfq export --format=integers`"),
        ([tmp_path / "cut.safetensors", images], "or it is damaged"),
        ([images, images], "is no file of"),
        ([tmp_path, images], "cannot be read: Is a directory"),
        ([tmp_path / "none", images], "cannot be read: No such file"),
        ([model, teacher], "is no .npz file with the arrays x and y"),
        ([model, images], f"must hold x, uint8 (N, {SIZE}, {SIZE}, 3)"),
    ):
        assert numpy_reader.main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1


def test_a_pytorch_file_has_the_teachers_own_keys(tmp_path):
    student = make_student("w4a4")
    adadfq_jax.export(student, tmp_path / "s.pth", images=make_images(SIZE))
    content = torch.load(tmp_path / "s.pth", weights_only=True)
    kernel = content["state_dict"]["layer1.0.conv1.weight"]
    assert len(np.unique(kernel[0])) <= 16
    assert content["weight_bits"]["linear.weight"] == 4
    assert content["activations"]["stage1_block1/relu1"]["bits"] == 4


def test_a_file_that_is_not_the_student_is_not_left(tmp_path, monkeypatch):
    student = make_student()
    other = quantized.take_apart(make_student(teacher=make_teacher(seed=1)))
    monkeypatch.setattr("adadfq_jax.exporting.export.take_apart", lambda _: other)
    with pytest.raises(VerificationError, match="differ from the student's by more than 1%"):
        adadfq_jax.export(student, tmp_path / "s.onnx", images=make_images(SIZE))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    quantize.quantize(make_small_config(), make_teacher(), folder, show_progress=False)
    return folder


@pytest.fixture
def verb(capfd):
    def run(*argv):
        code = main.run([*argv, "--cache="])
        return code, *capfd.readouterr()

    return run


def test_the_verb_and_evaluate_agree(run_folder, tmp_path, verb):
    pixels = random.integers(0, 256, (50, SIZE, SIZE, 3), np.uint8)
    np.savez(tmp_path / "test.npz", x=pixels, y=np.arange(50) % 10)
    data = "--source=npz", f"--path={tmp_path / 'test.npz'}", "--json"
    code, out, _ = verb("evaluate", f"--workdir={run_folder}", *data)
    assert code == 0
    expected = json.loads(out)
    for name in ("s.safetensors", "s.onnx", "s.stablehlo", "s.pth"):
        path = tmp_path / name
        code, out, err = verb("export", f"--workdir={run_folder}", f"--output={path}")
        assert (code, err) == (0, "")
        assert "same class" in out
        assert "checked as integers" in out
        assert ("PyTorch's layers take float32" in out) == (name == "s.pth")
        _, described, _ = verb("evaluate", f"--model={path}", *data[:2])
        format = FORMAT_BY_SUFFIX[path.suffix]
        assert described.splitlines()[0].split(maxsplit=1)[1].startswith(f"{format}, w4a4, ")
        code, out, err = verb("evaluate", f"--model={path}", *data)
        assert (code, err) == (0, "")
        measured = json.loads(out)
        assert measured["images"] == 50
        assert measured["top1"] == pytest.approx(expected["top1"], abs=0.021)


def test_a_run_leaves_its_student_in_the_formats_asked_for(tmp_path):
    config = make_small_config()
    config.export = "integers, onnx"
    student = quantize.quantize(config, make_teacher(), tmp_path / "run", show_progress=False)
    images = make_images(SIZE)
    found = adadfq_jax.load_exported(tmp_path / "run" / "student.safetensors")(images)
    np.testing.assert_array_equal(found, student(images))
    assert (tmp_path / "run" / "student.onnx").is_file()


def test_bad_input(run_folder, tmp_path, sentence):
    there = tmp_path / "there.onnx"
    there.write_text("mine")
    good = f"--workdir={run_folder}"
    for argv, words in (
        ([good], "--output=FILE is missing"),
        (["--output=x.onnx"], "give either --workdir=DIR or --teacher=FILE"),
        ([good, f"--output={there}"], "is not an exported student that adadfq wrote"),
        ([good, "--output=x.bin"], "should end in .safetensors or .onnx"),
        ([good, "--output=x.onnx", "--format=tflite"], "unknown format 'tflite'"),
        ([good, "--output=x.onnx", "--format=integers"], "should end in .safetensors"),
        ([good, "--output=/nowhere/x.onnx"], "there is no folder '/nowhere'"),
        ([good, "--output=x.pth", "--fold_norms"], "fold_norms: an option of onnx, not of pytorch"),
        ([good, "--output=x.onnx", "--checkpoint=newest"], "last, best or the number of"),
        ([good, "--output=x.onnx", "--checkpoint=7"], "no checkpoint of step 7"),
        ([f"--workdir={tmp_path}/typo", "--output=x.onnx", "--checkpoint=best"], "no run"),
        ([f"--workdir={tmp_path}", "--output=x.onnx"], "holds no run"),
        (["--teacher=t", "--checkpoint=last", "--output=x.onnx"], "--checkpoint is of a run"),
    ):
        assert words in sentence(["export", *argv, "--cache="]), argv
    assert there.read_text() == "mine"


@pytest.mark.parametrize("name", ["teacher.pth", "teacher.safetensors", "notes.onnx"])
def test_what_is_no_exported_student_is_not_overwritten(run_folder, tmp_path, sentence, name):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"conv1.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(Path(DIGITS_TEACHER).read_bytes() if "teacher" in name else b"mine")
    before = path.read_bytes()
    argv = ["export", f"--workdir={run_folder}", f"--output={path}", "--overwrite", "--cache="]
    assert "is not an exported student that adadfq wrote" in sentence(argv)
    assert path.read_bytes() == before


def test_the_healthiest_student_is_exported(tmp_path, verb, monkeypatch):
    scores = iter([0.5, 0.9, 0.1])  # after steps 6, 9 and 12
    monkeypatch.setattr(Answers, "health", property(lambda _: next(scores)))
    workdir = tmp_path / "run"
    config = make_small_config()
    config.checkpoint.every_steps = 1
    result = quantize.quantize(config, make_teacher(), workdir, show_progress=False).result
    output = tmp_path / "best.safetensors"
    code, _, err = verb("export", f"--workdir={workdir}", "--checkpoint=best", f"--output={output}")
    assert (code, err) == (0, "")
    images = make_images(SIZE)
    assert (result.healthiest_step, result.steps) == (9, 12)
    best = load_student(workdir, 9)
    np.testing.assert_array_equal(adadfq_jax.load_exported(output)(images), best(images))
    with pytest.raises(CheckpointError, match="no checkpoint of step 10"):
        load_student(workdir, "10")  # neither among the newest nor the healthiest


def test_a_run_that_is_not_finished(run_folder, tmp_path, verb):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "result.json").unlink()
    code, _, err = verb("export", f"--workdir={folder}", f"--output={tmp_path / 's.onnx'}")
    assert code == 2
    assert "is not finished; --checkpoint=last" in err
    last = "--checkpoint=last"
    code, _, _ = verb("export", f"--workdir={folder}", f"--output={tmp_path / 's.onnx'}", last)
    assert code == 0


def test_an_export_is_of_the_step_that_the_run_is_at_or_it_is_said(run_folder, tmp_path, capfd):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    path, config = folder / "student.safetensors", make_small_config()

    def go_on(epochs, formats):
        config.epochs, config.export = epochs, formats
        quantize.quantize(config, make_teacher(), folder)
        return read_about(path)["step"], json.loads((folder / "result.json").read_text())["steps"]

    assert go_on(4, "integers") == (12, 12)
    first = path.stat()
    assert go_on(4, "integers") == (12, 12)
    assert path.stat() == first  # it is the student, and so is not written anew
    with pytest.warns(UserWarning, match=r"is of step 12, but this run is at step 15: .*=integers"):
        assert go_on(5, "") == (12, 15)
    said = " ".join(capfd.readouterr().err.split())
    assert "student.safetensors is of step 12, and this run goes on to step 15" in said
    with pytest.warns(UserWarning, match="is of step 12, but this run is at step 15"):
        assert go_on(5, "") == (12, 15)  # complete
    assert go_on(5, "integers") == (15, 15)
    about = read_about(path)
    assert about["student"] == load_student(folder).digest
    assert about["teacher"] == make_teacher().digest

    # What no run wrote is neither replaced nor taken for the student.
    for name, content in (("onnx", b"mine"), ("integers", Path(DIGITS_TEACHER).read_bytes())):
        foreign = folder / f"student{'.onnx' if name == 'onnx' else '.safetensors'}"
        foreign.write_bytes(content)
        for epochs in (5, 6):
            with pytest.raises(ConfigError, match="would be replaced, but is not a student of thi"):
                go_on(epochs, name)
        assert foreign.read_bytes() == content
    config.epochs, config.export = 5, ""
    with pytest.warns(UserWarning, match="does not say that it is this run's student") as warned:
        quantize.quantize(config, make_teacher(), folder)
    assert len(warned) == 2


def test_an_export_that_does_not_say_its_step_is_written_anew(run_folder, tmp_path):
    config = make_small_config()
    config.export = "integers"
    folder = shutil.copytree(run_folder, tmp_path / "run")
    quantize.quantize(config, make_teacher(), folder, show_progress=False)
    path = folder / "student.safetensors"
    with safetensors.safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["adadfq_integers"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del described["about"]["step"], described["about"]["student"], described["checksum"]
    described["checksum"] = checksum(described, arrays)
    metadata = {"adadfq_integers": json.dumps(described)}
    safetensors.numpy.save_file(arrays, path, metadata)
    adadfq_jax.load_exported(path)
    quantize.quantize(config, make_teacher(), folder, show_progress=False)
    assert read_about(path)["step"] == 12


@pytest.mark.parametrize("suffix", ["safetensors", "onnx", "stablehlo", "pth"])
def test_every_format_says_whose_student_it_is(suffix, tmp_path, monkeypatch):
    student = dataclasses.replace(make_student(), step=7)
    path = tmp_path / f"s.{suffix}"
    adadfq_jax.export(student, path, images=make_images(SIZE))
    monkeypatch.setitem(sys.modules, "onnx", None)  # reading it takes no package but torch
    about = read_about(path)
    assert (about["step"], about["student"]) == (7, student.digest)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert read_about(path) == {}
    path.write_text("mine")
    assert read_about(path) == {}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    student = make_student()
    for name in ("s.safetensors", "s.onnx", "s.stablehlo", "s.pth"):
        adadfq_jax.export(student, folder / name, images=make_images(SIZE))
    return folder


@pytest.mark.parametrize("name", ["s.safetensors", "s.onnx", "s.stablehlo", "s.pth"])
@pytest.mark.parametrize("damage", ["cut", "empty", "flip"])
def test_a_damaged_file_is_refused(files, tmp_path, name, damage):
    content = bytearray((files / name).read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = content[:0]
    else:
        content[len(content) // 2] ^= 0x10
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=r"damaged|not a readable|not a file of"):
        adadfq_jax.load_exported(tmp_path / name)


def test_a_newer_format_is_refused(files, tmp_path):
    with safetensors.safe_open(files / "s.safetensors", "numpy") as file:
        described = json.loads(file.metadata()["adadfq_integers"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    described["format"] += 1
    metadata = {"adadfq_integers": json.dumps(described)}
    safetensors.numpy.save_file(arrays, tmp_path / "s.safetensors", metadata)
    model = onnx.load(files / "s.onnx")
    described = json.loads(model.metadata_props[0].value)
    described["format"] += 1
    model.metadata_props[0].value = json.dumps(described)
    onnx.save(model, tmp_path / "s.onnx")
    with zipfile.ZipFile(files / "s.stablehlo") as old:
        described = json.loads(old.read("adadfq.json"))
    described["format"] += 1
    with zipfile.ZipFile(tmp_path / "s.stablehlo", "w") as file:
        file.writestr("adadfq.json", json.dumps(described))
    content = torch.load(files / "s.pth", weights_only=True)
    content["format"] += 1
    torch.save(content, tmp_path / "s.pth")
    for name in ("s.safetensors", "s.onnx", "s.stablehlo", "s.pth"):
        with pytest.raises(ExportError, match=r"has format [23], but this version reads up to"):
            adadfq_jax.load_exported(tmp_path / name)


def test_integers_of_the_first_format_are_read(files, tmp_path):
    """Whose graph had other attributes; the networks are those of this package."""
    with safetensors.safe_open(files / "s.safetensors", "numpy") as file:
        described = json.loads(file.metadata()["adadfq_integers"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    described["format"] = 1
    described["graph"] = [[*node[:3], {"padding": 1}] for node in described["graph"]]
    del described["checksum"]
    described["checksum"] = checksum(described, arrays)
    path = tmp_path / "s.safetensors"
    safetensors.numpy.save_file(arrays, path, {"adadfq_integers": json.dumps(described)})
    images = make_images(SIZE)
    expected = adadfq_jax.load_exported(files / "s.safetensors")(images)
    np.testing.assert_array_equal(adadfq_jax.load_exported(path)(images), expected)
    assert numpy_reader.main([str(path), str(DIGITS_TEST)]) == 2


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ExportError, match="there is no file"):
        adadfq_jax.load_exported(tmp_path / "s.onnx")
    (tmp_path / "s.bin").write_text("")
    with pytest.raises(ExportError, match="no exported file: those end in"):
        adadfq_jax.load_exported(tmp_path / "s.bin")
    teacher = Path(adadfq_jax.__file__).parent / "assets" / "digits_resnet20.safetensors"
    with pytest.raises(ExportError, match="a teacher's is for --teacher"):
        adadfq_jax.load_exported(teacher)


def test_a_student_without_a_generator_needs_images():
    with pytest.raises(ConfigError, match="no generator: give images"):
        adadfq_jax.export(make_student(), "student.onnx")


def test_integers_that_are_wrong_are_a_failure(tmp_path, monkeypatch):
    right = integer_check._in_integers

    def wrong(*arguments):
        y, largest = right(*arguments)
        return 1.1 * y, largest

    monkeypatch.setattr(integer_check, "_in_integers", wrong)
    with pytest.raises(VerificationError, match="in integers, stage1_block1/conv1"):
        adadfq_jax.export(make_student(), tmp_path / "s.onnx", images=make_images(SIZE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("images", "words"),
    [(np.zeros((0, SIZE, SIZE, 3)), "images must be"), (np.zeros((4, 6, 6, 3)), "images must be")],
)
def test_images_that_do_not_fit(tmp_path, images, words):
    with pytest.raises(ConfigError, match=words):
        adadfq_jax.export(make_student(), tmp_path / "s.onnx", images=images)


def test_only_students_and_teachers_are_exported(files, tmp_path):
    with pytest.raises(ConfigError, match="export takes a student"):
        adadfq_jax.export(adadfq_jax.load_exported(files / "s.safetensors"), tmp_path / "s.onnx")


def test_a_finished_run_is_exported_later_and_a_lost_end_is_played_again(tmp_path):
    config = make_small_config()
    config.checkpoint.every_steps = 6
    folder = tmp_path / "run"
    first = quantize.quantize(config, make_teacher(), folder, show_progress=False)
    config.export = "integers"
    quantize.quantize(config, make_teacher(), folder, show_progress=False)
    assert (folder / "student.safetensors").is_file()
    for file in (folder / "checkpoints" / "12").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"):
        again = quantize.quantize(config, make_teacher(), folder, show_progress=False)
    assert again.result.steps == 12
    assert again.digest == first.digest


@pytest.mark.parametrize("fold_norms", [False, True])
@pytest.mark.parametrize("architecture", ["resnet8_cifar", "mobilenet_v2_x0.25"])
def test_a_teacher_as_onnx(tmp_path, architecture, fold_norms):
    teacher = make_teacher(architecture=architecture, size=32)
    report = adadfq_jax.export(teacher, tmp_path / "t.onnx", fold_norms=fold_norms)
    assert report.difference < 1e-4
    with pytest.raises(ConfigError, match="as onnx only"):
        adadfq_jax.export(teacher, tmp_path / "t.safetensors")


def test_not_a_number_is_a_failure():
    student = make_student()
    network = quantized.take_apart(student)
    images = make_images(SIZE)
    models = {"onnxruntime": lambda batch: np.full((len(batch), 10), np.nan)}
    report = verification.compare(student, network, models, images, 1, "onnx")
    assert report.failure


SHARED = ROOT.parent / "shared"
EDGES = ("stem_*=w8a8", "classifier=w8")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """By name: (a teacher, its test set, the float teacher as ONNX in images per second)."""
    folder = tmp_path_factory.mktemp("real")
    found = {"digits": (adadfq_jax.load_teacher(DIGITS_TEACHER), load_dataset("npz", DIGITS_TEST))}
    if SHARED.exists():
        mean, std = NORMALISATIONS["imagenet"]
        teacher = SHARED / "teachers" / "resnet20_cifar10.th"
        found["cifar10"] = (
            adadfq_jax.load_teacher(teacher, "resnet20_cifar", mean=mean, std=std),
            load_dataset("npz", SHARED / "data" / "cifar10_test.npz"),
        )
    for name, (teacher, dataset) in found.items():
        adadfq_jax.export(teacher, folder / f"{name}.onnx")
        result = evaluate(adadfq_jax.load_exported(folder / f"{name}.onnx"), dataset)
        found[name] = teacher, dataset, result["images_per_second"]
    return found


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "bits", "overrides"),
    [
        ("digits", "w4a2", EDGES),
        *(("cifar10", bits, ()) for bits in ("w3a3", "w4a4", "w5a5", "w8a8", "w4a8")),
        ("cifar10", "w4a4", EDGES),
    ],
)
def test_top1_of_every_file(real, tmp_path, capsys, name, bits, overrides):
    """Two epochs of 200 steps, calibration and play, then every format on all test images."""
    if name not in real:
        pytest.skip("the real CIFAR-10 teacher is not at ../shared")
    teacher, dataset, float_speed = real[name]
    config = adadfq_jax.default_config(bits)
    config.quant.overrides = overrides
    config.calibration_epochs = config.warmup_epochs = 1
    config.epochs, config.devices = 2, 1
    student = quantize.quantize(config, teacher, show_progress=False)
    tops = {"student": evaluate(student, dataset)["top1"]}
    sizes, speed = {}, 0.0
    for suffix in (".safetensors", ".onnx", ".stablehlo", ".pth"):
        report = adadfq_jax.export(student, tmp_path / f"s{suffix}")
        result = evaluate(adadfq_jax.load_exported(tmp_path / f"s{suffix}"), dataset)
        tops[report.format], sizes[report.format] = result["top1"], report.file_bytes
        if suffix == ".onnx":
            speed = result["images_per_second"]
    with capsys.disabled():
        print(f"\n{name} {bits} {overrides} {tops} {sizes} teacher {report.teacher_bytes} bytes,")
        print(f"integers within {report.integer_difference:.1e}, ONNX {speed / float_speed:.2f} of")
        print(f"the float teacher's {float_speed:.0f} images/s")
    for top1 in tops.values():
        assert abs(top1 - tops["student"]) * len(dataset) <= max(1, 5e-4 * len(dataset))


def said_of_the_input(path):
    """What a file of any format says of itself."""
    match path.suffix:
        case ".safetensors":
            with safetensors.safe_open(path, "numpy") as file:
                return json.loads(file.metadata()["adadfq_integers"])
        case ".onnx":
            return json.loads(onnx.load(path).metadata_props[0].value)
        case ".stablehlo":
            with zipfile.ZipFile(path) as file:
                return json.loads(file.read("adadfq.json"))
    return torch.load(path, weights_only=True)["about"]


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Files of a student whose classes have names."""
    folder = tmp_path_factory.mktemp("named")
    names = [f"class {number}" for number in range(10)]
    student, images = make_student(), make_images(SIZE)
    for name in ("s.safetensors", "s.onnx", "s.stablehlo", "s.pth"):
        adadfq_jax.export(student, folder / name, images=images, class_names=names)
    with pytest.raises(ConfigError, match="class_names must be 10 names, one of each class, not 2"):
        adadfq_jax.export(student, folder / "x.onnx", images=images, class_names=["a", "b"])
    return folder


@pytest.mark.parametrize("name", ["s.safetensors", "s.onnx", "s.stablehlo", "s.pth"])
def test_every_format_says_what_it_takes(named, tmp_path, name):
    described = said_of_the_input(named / name)
    asked = described["input"]
    # Followed to the letter, by a program that knows only this, a picture becomes what it should.
    assert (asked["channels"], asked["crop"], asked["type"]) == ("RGB", "centre", "float32")
    assert asked["resize"]["shorter_side"] == asked["height"] == asked["width"] == SIZE
    assert asked["layout"] == ("NCHW" if name in ("s.onnx", "s.pth") else "NHWC")
    assert asked["values"] == "(pixels / 255 - mean) / std"
    assert (asked["mean"], asked["std"]) == ([0.5] * 3, [0.25] * 3)
    model = adadfq_jax.load_exported(named / name)
    assert model.class_names == tuple(described["class_names"])
    assert model.class_names[3] == "class 3"
    assert len(repr(model)) < 200
    told = "RGB, shorter side 8, of which the centre 8x8; mean 0.5, 0.5, 0.5; std 0.25, 0.25, 0.25"
    assert told in Measured(model, None, None, []).to_text() or name in ("s.safetensors", "s.pth")
    pixels = random.integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    given_images = ((pixels / 255 - asked["mean"]) / asked["std"]).astype(np.float32)
    assert_close(model(given_images), np.asarray(model(pixels)))

    # The same classes in another order would be measured wrongly without a word.
    for label in model.class_names:
        (tmp_path / label).mkdir()
        Image.fromarray(pixels[0]).save(tmp_path / label / "1.png")
    assert evaluate(model, load_dataset("folder", str(tmp_path)))["images"] == 10
    turned = dataclasses.replace(model, class_names=model.class_names[::-1])
    with pytest.raises(DataError, match="another order: class 0 is 'class 0', and of the network"):
        evaluate(turned, load_dataset("folder", str(tmp_path)))


def test_an_input_that_is_not_given_is_refused(named, tmp_path):
    model = onnx.load(named / "s.onnx")
    for entry, value, words in (
        ("channels", "BGR", "asks for an input whose channels is 'BGR'"),
        ("resize", {"shorter_side": 9}, "asks for an input whose resize"),
    ):
        described = said_of_the_input(named / "s.onnx")
        del described["checksum"]
        described["input"][entry] = value
        described["checksum"] = onnx_qdq._checksum(described, model)
        model.metadata_props[0].value = json.dumps(described)
        onnx.save(model, tmp_path / "s.onnx")
        with pytest.raises(ExportError, match=words):
            adadfq_jax.load_exported(tmp_path / "s.onnx")
    # A graph of another size than the description's.
    described = said_of_the_input(named / "s.onnx")
    del described["checksum"]
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_value = SIZE + 2
    described["checksum"] = onnx_qdq._checksum(described, model)
    model.metadata_props[0].value = json.dumps(described)
    onnx.save(model, tmp_path / "s.onnx")
    with pytest.raises(ExportError, match=r"says that its input is \(3, 8, 8\), but its program"):
        adadfq_jax.load_exported(tmp_path / "s.onnx")


def test_the_packed_size_is_that_of_the_numbers_in_the_file(named):
    with safetensors.safe_open(named / "s.safetensors", "numpy") as file:
        size = sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
    assert packed_bytes(flatten(make_student().variables)) == size
