"""Bits by layer for the digits teacher, from few images."""

import dataclasses
import json

import numpy as np
import pytest

import adadfq_jax
from adadfq_jax.allocation import play
from adadfq_jax.allocation.allocate import allocate
from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST
from adadfq_jax.cli import main
from adadfq_jax.config.bits_file import with_files
from adadfq_jax.config.fields import default_config
from adadfq_jax.config.resolve import resolve
from adadfq_jax.errors import ConfigError
from adadfq_jax.exporting.description import read_about
from adadfq_jax.models.network import flatten
from adadfq_jax.models.size import packed_bytes
from adadfq_jax.reporting.allocation_figure import draw_allocation
from adadfq_jax.training.calibrated import bits_of, calibrated_on, procedural_images
from tests.conftest import make_result, make_teacher


@pytest.fixture(scope="module")
def teacher():
    return adadfq_jax.load_teacher(DIGITS_TEACHER)


@pytest.fixture(scope="module")
def found(teacher):
    return allocate(
        teacher, 3.0, choices=(2, 3, 8), fixed=("@last=w8",), images=4, quick=True, checks=2
    )


@pytest.fixture(scope="module")
def file(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("bits") / "bits.json"
    found.save(path)
    return path


def test_more_bits_are_nearer_to_the_teacher(found):
    distances = found.distances
    assert np.isfinite(distances).sum(1).tolist().count(1) == 1  # the classifier is fixed
    free = distances[np.isfinite(distances).all(1)]
    assert np.median(free[:, 0] / free[:, 2]) > 100
    assert (np.diff([distance for _, distance in found.curve]) < 0).all()


def test_the_choice_is_within_the_budget_and_better_than_uniform_bits(found):
    uniform = found.uniform(found.uniform_bits)
    for kind in ("weight", "activation"):
        assert found.average(kind, found.bits) <= 3
    assert found.by_name(found.bits)["classifier", "weight"] == 8
    assert found.predicted(found.bits) < found.predicted(uniform)
    assert len(found.compared) == 2
    assert all(np.isfinite(found.compared).ravel())


def test_the_file_is_what_a_run_takes(found, file, teacher):
    config = default_config("w3a3")
    config.quant.overrides = (f"@{file}", "stem_conv=w7")
    config = resolve(config, teacher)
    assert config.quant.overrides == (*found.overrides, "stem_conv=w7")
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    written = json.loads(file.read_text())
    assert written["teacher"] == teacher.digest
    assert {layer["bits"] for layer in written["layers"]} <= {2, 3, 8}
    # The report of such a run reads the figure back from the file.
    assert draw_allocation(written).png == file.with_suffix(".png").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"curve": None},
        {"curve": [1, 2]},
        {"uniform": []},
        {"uniform": {"3": [3, None]}},
        {"level": None},
        {"level": 10**400},
        {"distance": -1},
        {"distance": float("nan")},
        {"measure": "foo"},
        {"measure": [1]},
    ],
)
def test_what_a_person_changed_in_the_file_stops_no_report(file, changed):
    assert draw_allocation(json.loads(file.read_text()) | changed) is None


def test_a_mixed_student_is_exported_and_as_large_as_budgeted(found, file, teacher, tmp_path):
    images = procedural_images(teacher, 16)
    student = calibrated_on(teacher, f"w3a3@{file}", images, "least_error")
    student = dataclasses.replace(student, result=make_result())
    bits = flatten({"bits": bits_of(teacher, f"w3a3@{file}")})
    assert bits["bits/classifier/weight"] == 8
    for (layer, kind), width in found.by_name(found.bits).items():
        assert bits[f"bits/{layer}/{kind}"] == width
    path = tmp_path / "student.safetensors"
    assert adadfq_jax.export(student, path, images=images).agreement == 1
    expected = found.packed_bytes(found.bits)
    assert packed_bytes(flatten(student.variables)) == expected
    codes = read_about(path)
    assert codes["student"] == student.digest


def test_another_network_is_refused(file, teacher):
    with pytest.raises(ConfigError, match=r"bit-widths of another network, resnet20_cifar .* `"):
        with_files([f"@{file}"], make_teacher(), sums=False)
    with pytest.raises(ConfigError, match=r"made for quant\.sums=False"):
        with_files([f"@{file}"], teacher, sums=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no file of bit-widths .* in its workdir as allocation.json"),
        ("{", "is no file of `adadfq allocate`"),
        ('{"overrides": []}', "is no file of `adadfq allocate`"),
        ({"format": 2}, "is of format 2, and this version"),
        ({"overrides": [8]}, "is damaged"),
        ({"overrides": ["stem_conv=w9"]}, "between 1 and 8, not 9"),
        ({"overrides": ["stem_conv=w" + "9" * 5000]}, "takes entries like"),
        ("[" * 200_000, "is no file of `adadfq allocate`"),
    ],
)
def test_damaged_files_are_refused(file, teacher, tmp_path, content, says):
    path = tmp_path / "other.json"
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        with_files([f"@{path}"], teacher, sums=False)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--budget=" + "9" * 400 + "kB"], "a budget is written 4.0"),
        (["--budget=3", "--choices=2," + "9" * 5000], "must be bit-widths such as 2,3,4"),
        (["--budget=1"], "a budget of 1 is below the smallest choice, 2 bits."),
        (["--budget=3", "--choices=2,x"], "--choices must be bit-widths such as 2,3,4, not 'x'."),
        (["--budget=3", "--choices=3"], "choices must be two bit-widths or more, not 3."),
        (["--budget=3", "--fixed=stem_cnv=w8"], "matches no layer; did you mean stem_conv?"),
        (["--budget=2", "--fixed=@last=w8"], "is within the budget: what is fixed or shared"),
        (["--budget=3", "--groups=sum"], "there are no groups 'sum': did you mean sums?"),
        (["--budget=3", "--output=bits.txt"], "--output=bits.txt must end in .json"),
        (["--budget=3", "--source=npz"], "--source, --path and --labels are of --play=EPOCHS."),
        (["--budget=3", "--play=2", "--source=npz", "--path=README.md"], "is not an .npz file"),
        (["--budget=3", "--output=no/bits.json"], "there is no folder 'no' to write bits.json in."),
    ],
)
def test_bad_arguments_are_one_sentence(sentence, tmp_path, argv, says):
    output = f"--output={tmp_path / 'bits.json'}"
    given = ["allocate", "--cache=", f"--teacher={DIGITS_TEACHER}", "--quick", output, *argv]
    err = sentence(given).splitlines()[-1]
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_not_replaced(sentence, file, tmp_path):
    other = tmp_path / "mine.json"
    other.write_text("{}")
    given = ["allocate", f"--teacher={DIGITS_TEACHER}", "--budget=3"]
    assert "move it away" in sentence([*given, f"--output={other}", "--overwrite"])
    assert "--overwrite replaces it" in sentence([*given, f"--output={file}"])


def test_the_verb_ends_with_its_files_and_what_comes_next(monkeypatch, found, capsys, tmp_path):
    monkeypatch.setattr("adadfq_jax.allocation.allocate.allocate", lambda *args, **given: found)
    monkeypatch.setattr(play, "quantize", None)  # nothing is trained
    path = tmp_path / "bits.json"
    argv = ["allocate", "--cache=", f"--teacher={DIGITS_TEACHER}", "--budget=3", f"--output={path}"]
    assert main.run([*argv, "--quick"]) == 0
    out = capsys.readouterr().out
    assert path.exists()
    assert f"--config.quant.overrides=@{path}" in out
    assert "rank correlation" in out


def test_short_runs_tell_which_kept_more(monkeypatch, found, teacher):
    """With students that are calibrated instead of trained."""
    asked = []

    def calibrated(config, given, *, show_progress):
        asked.append(config)
        student = calibrated_on(given, "w3a3", found.held_out, "least_error")
        top1 = 0.5 if config.quant.overrides == found.overrides else 0.4
        return dataclasses.replace(student, result=make_result(top1=top1))

    monkeypatch.setattr(play, "quantize", calibrated)
    data = play.data_of(6, "npz", str(DIGITS_TEST), None)
    rows = play.play(found, 6, data)
    assert [config.quant.weight_bits for config in asked] == [3, 3]
    assert [config.data.source for config in asked] == ["npz", "npz"]
    assert asked[1].quant.overrides == found.fixed
    assert "the chosen bits kept more of top-1, by 10.00%" in play.played_table(rows)
