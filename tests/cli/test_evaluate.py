"""The verb `evaluate`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import adadfq_jax
from adadfq_jax.cli import evaluate as verb
from adadfq_jax.cli import main
from adadfq_jax.config import fields
from adadfq_jax.config.bits_file import write_bits
from adadfq_jax.data.dataset import from_arrays
from adadfq_jax.errors import ConfigError, DataError
from adadfq_jax.models.network import flatten, normalize
from adadfq_jax.teachers.load import load_teacher, save_teacher
from adadfq_jax.training import calibrated as calibrated_students
from adadfq_jax.training import quantize
from adadfq_jax.training.calibrated import calibrated_on, calibrated_on_generated, compare_bits
from tests.conftest import SIZE, make_small_config, make_teacher

ASSETS = Path(adadfq_jax.__file__).parent / "assets"
DIGITS = ASSETS / "digits_resnet20.safetensors"
TEST = ASSETS / "digits_test.npz"
ON_DIGITS = [f"--teacher={DIGITS}", "--source=npz", f"--path={TEST}"]

random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (60, SIZE, SIZE, 3), np.uint8)
LABELS = random.integers(0, 10, 60)


@pytest.fixture
def evaluate(capfd):
    """Returns a function that runs the verb: (code, out, err)."""

    def run(*argv):
        code = main.run(["evaluate", "--cache=", *argv])
        return code, *capfd.readouterr()

    return run


def test_the_digits_teacher(evaluate):
    code, out, err = evaluate(*ON_DIGITS)
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    teacher = load_teacher(DIGITS)
    with np.load(TEST) as file:
        images, labels = file["x"], file["y"]
    right = np.asarray(teacher(images)).argmax(-1) == labels
    assert ["top-1", f"{right.mean():.2%}"] in lines
    assert ["images", str(len(labels)), "of", str(TEST)] in lines
    for label in range(10):
        (line,) = (line for line in lines if line and line[0] == str(label))
        count = str((labels == label).sum())
        assert line == [str(label), count, f"{right[labels == label].mean():.2%}", line[3]]


def test_json_is_one_object(evaluate):
    code, out, err = evaluate(*ON_DIGITS, "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    result = json.loads(out)
    assert result.keys() == {"top1", "top5", "images", "images_per_second"}
    assert result["images"] == 360
    assert 0.98 < result["top1"] <= result["top5"] <= 1


def test_another_normalisation_than_the_files_is_refused(evaluate):
    code, out, err = evaluate(*ON_DIGITS, "--mean=imagenet")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "0.485, 0.456, 0.406" in err
    assert str(load_teacher(DIGITS).mean[0]) in err


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    save_teacher(make_teacher(), folder / "teacher.safetensors")
    np.savez(folder / "images.npz", x=IMAGES, y=LABELS)
    np.savez(folder / "others.npz", x=IMAGES[:20], y=LABELS[:20])
    return folder


@pytest.fixture(scope="module")
def workdir(files):
    config = make_small_config()
    config.teacher.path = str(files / "teacher.safetensors")
    config.data.source, config.data.path = "npz", str(files / "images.npz")
    quantize.quantize(config, workdir=files / "run", show_progress=False)
    return files / "run"


def test_a_runs_student_on_the_runs_images_or_others(evaluate, files, workdir, tmp_path):
    code, out, _ = evaluate(f"--workdir={workdir}", "--json")
    result, expected = json.loads(out), json.loads((workdir / "result.json").read_text())
    assert (code, result["images"]) == (0, 60)
    assert (result["top1"], result["top5"]) == (expected["top1"], expected["top5"])
    assert expected["top1"] != expected["teacher_top1"]
    code, out, _ = evaluate(f"--workdir={workdir}", f"--path={files / 'others.npz'}")
    assert code == 0
    assert "resnet8_cifar, w4a4, after 12 steps" in out
    assert "20 of" in out
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    assert "a run that is not finished" in evaluate(f"--workdir={tmp_path / 'run'}")[1]


def test_missing_images_are_asked_for_before_anything_is_loaded(sentence, tmp_path, monkeypatch):
    def load(*_args, **_kwargs):
        raise AssertionError("a network was loaded")

    for name in ("load_student", "load_exported", "read_teacher"):
        monkeypatch.setattr(verb, name, load)
    (tmp_path / "config.json").write_text('{"data": {"source": "none", "path": null}}')
    for flag in (f"--workdir={tmp_path}", "--model=student.onnx", "--teacher=teacher.pth"):
        assert "--source is missing" in sentence(["evaluate", flag])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give one of --teacher=FILE, --workdir=DIR and --model=FILE"),
        (["--teacher={files}/teacher.safetensors", "--workdir={run}"], "give one of --teacher"),
        (["--teacher={files}/teacher.safetensors"], "--source is missing"),
        (["--teacher={files}/teacher.safetensors", "--path=x.npz"], "--source is missing"),
        (["--teacher={files}/teacher.safetensors", "--source=none"], "--source is missing"),
        (["--teacher={files}/teacher.safetensors", "--source=npz"], "npz needs --path"),
        (["--workdir={run}", "--source=folder"], "folder needs --path"),
        (["--workdir={run}", "--source=foldr"], "'foldr': did you mean folder"),
        (["--workdir={run}", "--mean=cifar10"], "--mean says (0.4914, 0.4822, 0.4465), but (0.5"),
        (["--workdir={run}", "--image_size=9"], "--image_size says 9, but {run} has 8."),
        (
            ["--workdir={run}", "--architecture=resnet20_cifar"],
            "says resnet20_cifar, but has resnet8_cifar.",
        ),
        (["--workdir={run}", "--entry=model"], "--entry says model, but has None."),
        (["--workdir={run}", "--bits=w4a4", "--epochs=2"], "the run has one: leave it out"),
        (["--workdir={run}", "--bits=w4a4", "--ranges=max"], "ranges 'max': did you mean minmax"),
        (["--workdir={run}", "--calibration=64"], "not trained: give their --bits"),
        (["--workdir={run}", "--epochs=2"], "not trained: give their --bits"),
        (["--workdir={run}", "--quick"], "--quick is about students that are not trained: give"),
        (["--workdir={run}", "--path=missing.npz"], "no data file 'missing.npz'"),
        (["--workdir={files}"], "holds no run"),
        (["--workdir={run}", "--batch_size=0"], "batch_size"),
        (["--workdir={run}", "--batchsize=0"], "batchsize"),
        (["--teacher={files}/teacher.safetensors", "--bits=w4"], "like w4a4, not 'w4'"),
        (["--teacher={files}/teacher.safetensors", "--bits=w4a4,w9a1"], "1 and 8, not 9"),
    ],
)
def test_bad_input_is_one_sentence(evaluate, files, workdir, argv, message):
    argv = [word.format(files=files, run=workdir) for word in argv]
    code, out, err = evaluate(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    for words in message.format(run=workdir).split(", but "):
        assert words in err


def test_help(evaluate):
    code, out, err = evaluate("--help")
    assert (code, err) == (0, "")
    for name in ("teacher", "workdir", "source", "path", "mean", "std", "bits"):
        assert f"\n  --{name}=" in out
    assert "\n  --json " in out


# ---- Without training -------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def short_epochs(monkeypatch):
    """Two steps an epoch."""
    default = fields.default_config

    def short(bits):
        config = default(bits)
        config.steps_per_epoch = 2
        config.evaluation.generated_images = 40
        return config

    monkeypatch.setattr(calibrated_students, "default_config", short)


def test_ranges_from_generated_images_are_a_games_calibration(teacher):
    student = calibrated_on_generated(teacher, "w4a3", 3)
    config = fields.default_config("w4a3")
    config.steps_per_epoch, config.evaluation.generated_images = 2, 40
    config.devices, config.calibration_epochs = 4, 3
    config.warmup_epochs = config.epochs = 5  # two more, which change neither ranges nor student
    whole = flatten(quantize.quantize(config, teacher, show_progress=False).variables)
    calibrated = flatten(student.variables)
    assert calibrated.keys() == whole.keys()
    assert student.result.steps == 6
    for name, array in calibrated.items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)
    assert calibrated["ranges/stem_relu/updates"] == 6


def test_ranges_from_real_images_are_their_extremes(teacher):
    student = calibrated_on(teacher, "w3a2", IMAGES)
    ranges = student.variables["ranges"]["stem_relu"]
    bits = {"params": teacher.variables["params"], "bits": student.variables["bits"]}
    assert ranges["updates"] == 1
    # The first layer, by hand: its kernel at 3 bits, then BatchNorm and ReLU.
    kernel = np.asarray(teacher.variables["params"]["stem_conv"]["kernel"], np.float64)
    low, high = kernel.min((0, 1, 2)), kernel.max((0, 1, 2))
    scale = 7 / (high - low)
    zero = np.round(scale * low)
    kernel = (np.clip(np.round(scale * kernel - zero), 0, 7) + zero) / scale
    images = np.asarray(normalize(IMAGES, teacher.mean, teacher.std), np.float64)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = sum(
        padded[:, a : a + SIZE, b : b + SIZE] @ kernel[a, b] for a in range(3) for b in range(3)
    )
    stats = teacher.variables["batch_stats"]["stem_norm"]
    params = bits["params"]["stem_norm"]
    x = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]
    x = np.maximum(x, 0)
    assert float(ranges["minimum"]) == x.min() == 0
    assert float(ranges["maximum"]) == pytest.approx(x.max(), rel=1e-5)


def test_compare(teacher):
    labels = np.asarray(teacher(IMAGES)).argmax(-1)
    rows = compare_bits(
        teacher, ["w8a8", "w1a1"], from_arrays(IMAGES, labels), calibration=30, epochs=1
    )
    assert [row["bits"] for row in rows] == ["w8a8", "w1a1"]
    for kind in ("generated", "procedural", "real"):
        assert 1 >= rows[0][kind] > rows[1][kind] >= 0
    assert rows[0]["real"] > 0.9
    assert [row["real_images"] for row in rows] == [30, 30]
    blind = compare_bits(teacher, ["w8a8"], calibration=30, epochs=1)
    assert blind == [
        {"bits": "w8a8", "images": "generated", "agreement": rows[0]["agreement"]}
        | {"procedural": None, "generated": None, "real": None, "real_images": 0}
    ]


def test_widths_share_one_generator(teacher, monkeypatch, capsys):
    trained = []
    train = calibrated_students.quantize

    def noted(config, *args, **named):
        trained.append((config.quant.weight_bits, config.devices))
        return train(config, *args, **named)

    monkeypatch.setattr(calibrated_students, "quantize", noted)
    rows = compare_bits(teacher, ["w2a3", "w8a8", "w4a4"], epochs=1, show_progress=True)
    assert trained == [(8, 4)]  # of the widest, on all devices
    shares = [row["agreement"] for row in rows]
    assert shares[1] >= shares[2] > shares[0]
    said = capsys.readouterr().err
    assert "one generator for w2a3, w8a8, w4a4, trained with w8a8" in said
    for words in ("w2a3, 1 of 3: measuring", "w8a8, 2 of 3: measuring, about ", "w4a4, 3 of 3"):
        assert words in said


def test_quick_trains_nothing(teacher, monkeypatch, evaluate, files):
    monkeypatch.setattr(calibrated_students, "quantize", None)
    labels = np.asarray(teacher(IMAGES)).argmax(-1)
    rows = compare_bits(teacher, ["w8a8", "w1a1"], from_arrays(IMAGES, labels), quick=True)
    assert rows[0]["agreement"] > 0.9 > rows[1]["agreement"]
    assert rows[0]["procedural"] > 0.9 > rows[1]["procedural"]
    assert rows[0]["generated"] is None
    argv = (f"--teacher={files / 'teacher.safetensors'}", "--bits=w8a8", "--quick")
    code, out, _ = evaluate(*argv)
    assert code == 0
    assert "ranges from procedural images" in out
    assert f"w8a8      {rows[0]['agreement']:.2%}" in out


def test_bits_with_exceptions_in_a_file(teacher, tmp_path):
    path = tmp_path / "bits.json"
    write_bits(path, teacher, ["*=w8a8"], sums=False, about={})
    rows = compare_bits(teacher, [f"w1a1@{path}", "w8a8", "w1a1"], quick=True, calibration=60)
    shares = [row["agreement"] for row in rows]
    assert shares[0] == shares[1] > shares[2]
    lines = calibrated_students.calibrated_table(rows, None).splitlines()
    assert lines[1].split() == [f"w1a1@{path}", f"{shares[0]:.2%}"]
    with pytest.raises(ConfigError, match="no file of bit-widths"):
        compare_bits(teacher, ["w4a4@bits.json"], quick=True)


def test_ranges_of_least_error_and_of_a_run(teacher):
    data = from_arrays(IMAGES, np.asarray(teacher(IMAGES)).argmax(-1))
    asked = []

    def draw(count, batch):
        asked.append((count, batch))
        images = np.tile(IMAGES, (2, 1, 1, 1))[:count]
        return np.asarray(normalize(images, teacher.mean, teacher.std)), None

    options = {"draw": draw, "calibration": 60}
    (least,) = compare_bits(teacher, ["w3a3"], data, ranges="least_error", **options)
    (extremes,) = compare_bits(teacher, ["w3a3"], data, **options)
    assert asked == [(120, 16)] * 2
    for row, ranges in ((least, "least_error"), (extremes, "minmax")):
        images = np.asarray(normalize(IMAGES, teacher.mean, teacher.std))
        student = calibrated_students.following(teacher, "w3a3", images, ranges)
        assert row["generated"] == adadfq_jax.evaluate(student, data)["top1"]
    assert least["real"] > extremes["real"]
    student = calibrated_on(teacher, "w3a3", IMAGES, "least_error")
    # Of kernels as well, as the plus begins with.
    assert student.variables["ranges"]["stem_conv"]["minimum"].shape == (16,)
    with pytest.raises(ConfigError, match="no ranges 'least': did you mean least_error"):
        compare_bits(teacher, ["w4a4"], ranges="least")


@pytest.mark.parametrize("numbers", [{"calibration": 0}, {"epochs": 0}])
def test_numbers_that_are_too_small(teacher, numbers):
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        compare_bits(teacher, ["w4a4"], **numbers)


def test_images_that_do_not_fit(teacher):
    dataset = from_arrays(np.zeros((4, 9, 9, 3), np.uint8), np.arange(4))
    with pytest.raises(DataError, match="9x9"):
        compare_bits(teacher, ["w4a4"], dataset, epochs=1)


def test_bits_on_the_command_line(evaluate, files, workdir):
    teacher = f"--teacher={files / 'teacher.safetensors'}"
    data = ("--source=npz", f"--path={files / 'images.npz'}")
    widths = ("--bits=w8a8,w2a2", "--epochs=1", "--calibration=17")
    code, out, _ = evaluate(teacher, *data, *widths)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith(("w8a8", "w2a2"))]
    assert [len(row) for row in rows] == [4, 4]
    assert f"are 17, drawn at random from {files / 'images.npz'}" in out

    code, out, err = evaluate(teacher, *data, *widths, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["images"] == 60
    for row, shown in zip(found["bits"], rows, strict=True):
        kinds = ("procedural", "generated", "real")
        assert [row["bits"], *(f"{row[kind]:.2%}" for kind in kinds)] == shown

    code, out, _ = evaluate(
        f"--workdir={workdir}", *widths[:1], *widths[2:], "--ranges=least_error"
    )
    assert code == 0
    assert "resnet8_cifar, full precision" in out
    assert [line[:4] for line in out.splitlines() if line.startswith("w")] == ["w8a8", "w2a2"]

    code, out, _ = evaluate(teacher, *widths)
    assert code == 0
    rows = [line.split() for line in out.splitlines() if line.startswith(("w8a8", "w2a2"))]
    assert [row[1] for row in rows] == [f"{row['agreement']:.2%}" for row in found["bits"]]
    assert "there are no real ones" in out
