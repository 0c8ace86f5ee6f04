"""What the documents say is so: snippets run, commands parse, links and names lead somewhere."""

import configparser
import contextlib
import dataclasses
import io
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

import adadfq_jax
from adadfq_jax.assets import draw_curves, play_transcription, train_teachers
from adadfq_jax.benchmarks import benchmark, precompile
from adadfq_jax.cli import allocation, evaluate, main, speed, verbs
from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import default_config, find_field
from adadfq_jax.exporting import export
from adadfq_jax.measuring import session
from adadfq_jax.reporting import write
from adadfq_jax.teachers import convert
from adadfq_jax.training import quantize, samples
from adadfq_jax.training.calibrated import calibrated_on
from tests import ROOT
from tests.conftest import GROUPS, make_result

# Of each, a document or the folder in which it lies. What tools leave has a dot before its name.
DOCUMENTS = {
    str(path.relative_to(ROOT)): path
    for part in sorted(ROOT.iterdir())
    if part.name not in ("runs", "build") and not part.name.startswith(".")
    for path in sorted([part] if part.suffix == ".md" else part.rglob("*.md"))
}
README = ROOT / "README.md"
MOST_LINES_OF_README = 200
FILE_OF_OURS = re.compile(r"[\w./-]+\.(?:py|sh|sbatch|yml|cfg|cff|toml|ipynb)")

of_each_document = pytest.mark.parametrize("name", DOCUMENTS)


def blocks(path, language):
    """Returns the code blocks of a document that are of one language."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def prose(path):
    """Returns a document without its code blocks."""
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


def quoted(path):
    """Returns what stands between backticks in the text of a document."""
    return re.findall(r"`([^`\n]+)`", prose(path))


def test_the_notebook_snippet_is_understood(tmp_path, monkeypatch, capsys):
    """With a student that was calibrated on noise instead of trained."""
    (snippet,) = blocks(README, "python")[:1]
    noise = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)

    def calibrated(config, *, teacher):
        validate(config.copy_and_resolve_references())
        assert config.epochs * config.steps_per_epoch < 1000  # a short run
        result = make_result(calibrated_top1=0.25)
        return dataclasses.replace(calibrated_on(teacher, "w4a4", noise), result=result)

    monkeypatch.setattr(adadfq_jax, "quantize", calibrated)
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, README, "exec"), {})
    calibrated, student = map(float, capsys.readouterr().out.split()[-2:])
    assert calibrated == 0.25
    assert 0 <= student <= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.packages
def test_the_notebook_snippet_runs_and_leaves_no_file(tmp_path):
    (snippet,) = blocks(README, "python")[:1]
    finished = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, timeout=1200
    )
    assert finished.returncode == 0, finished.stderr
    calibrated, student = map(float, finished.stdout.split()[-2:])
    assert calibrated < 0.6
    assert student > 0.9
    assert list(tmp_path.iterdir()) == []


def test_the_readme_is_read_in_one_sitting():
    assert len(README.read_text().splitlines()) <= MOST_LINES_OF_README
    assert "./launch/local.sh configs/digits_resnet20.py" in blocks(README, "sh")[0]
    assert "./launch/test.sh" in blocks(README, "sh")[0]


def test_every_group_of_slow_tests_is_in_the_table_and_in_ci():
    table = (ROOT / "tests" / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(GROUPS)
    (played,) = re.findall(r"group: \[(.*)\]", (ROOT / ".github/workflows/ci.yml").read_text())
    assert {*played.split(", "), "real_data"} == set(GROUPS)


# ---- Links and names ------------------------------------------------------------------------


def anchors(path):
    """Returns the anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


@of_each_document
def test_every_link_leads_somewhere(name):
    path = DOCUMENTS[name]
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        there = (path.parent / target).resolve() if target else path
        if there.is_dir():
            there /= "README.md"
        assert there.is_file(), f"{name} links {link}"
        assert there.is_relative_to(ROOT.resolve()), f"{name} links {link}"
        assert not anchor or anchor in anchors(there), f"{name} links {link}"


def test_every_document_is_linked_from_another():
    linked = {README.resolve()}
    for path in DOCUMENTS.values():
        for link in re.findall(r"\]\(([^)#\s]+)", prose(path)):
            linked.add((path.parent / link).resolve())
    assert {path.resolve() for path in DOCUMENTS.values()} <= linked


@of_each_document
def test_every_file_that_it_names_exists(name):
    path = DOCUMENTS[name]
    text = path.read_text()
    for found in re.findall(r"\b(?:configs|launch|tests|adadfq_jax)/[\w/]+\.\w+", text):
        places = (ROOT, ROOT / "adadfq_jax", path.parent)
        assert any((place / found).exists() for place in places), f"{name} names {found}"
    for found in quoted(path):
        if FILE_OF_OURS.fullmatch(found):
            places = (ROOT, ROOT / "adadfq_jax", ROOT / "tests", path.parent)
            assert any((place / found).is_file() for place in places), f"{name} names {found}"


@of_each_document
def test_every_python_name_of_ours_exists(name):
    for found in re.findall(r"\badadfq_jax\.(\w+)\(", DOCUMENTS[name].read_text()):
        assert found in adadfq_jax.__all__, f"{name} calls adadfq_jax.{found}"


# ---- Commands -------------------------------------------------------------------------------


class Begun(Exception):
    """A verb has understood its command line and would begin to work."""


@pytest.fixture
def understand(monkeypatch):
    """Returns a function that runs a command line of `adadfq` up to where its work begins."""

    def begin(*args, **named):
        raise Begun

    def begin_to_export(path, format=None, **options):
        export.check_format(format, path)
        raise Begun

    monkeypatch.chdir(ROOT)
    for place, work in (
        (allocation, "check_output"),
        (benchmark, "benchmark"),
        (convert, "convert"),
        (evaluate, "open_network"),
        (session, "measure"),
        (precompile, "precompile"),
        (quantize, "quantize"),
        (samples, "write_samples"),
        (speed, "measure_file"),
        (verbs, "_play_sweep"),
        (write, "write_report"),
    ):
        monkeypatch.setattr(place, work, begin)
    monkeypatch.setattr(export, "check_output", begin_to_export)
    monkeypatch.setattr("adadfq_jax.devices.processes.start", lambda *others: "")
    monkeypatch.setattr(verbs, "keep_compiled_programs", lambda folder: None)
    monkeypatch.setattr(
        verbs, "divide_cpu_for", lambda config: validate(config.copy_and_resolve_references())
    )

    def run(*words):
        with pytest.raises(Begun):
            assert main.run(words) == 0, shlex.join(words)  # its sentence is on stderr

    return run


def commands(path):
    """Returns the commands of a document's shell blocks, each as words."""
    lines = "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


COMMANDS = [(name, words) for name, path in DOCUMENTS.items() for words in commands(path)]


def as_adadfq(words):
    """Returns what a launch script would run, of the words that follow its name."""
    script, rest = words[0].rpartition("/")[2], list(words[1:])
    if script in ("tpu_pod.sh", "slurm.sbatch"):
        verb = rest.pop(0)
        if script == "tpu_pod.sh":
            del rest[0]  # the slice
        if verb not in ("run", "quantize", "sweep"):
            return None
        return ["sweep" if verb == "sweep" else "quantize", f"--config={rest[0]}", *rest[1:]]
    if script in ("gpu_measure.sh", "tpu_measure.sh"):
        return ["measure", "--output=x", *(w for w in rest if not w.startswith("--wheels="))]
    if script not in ("local.sh", "cpu_pod.sh"):
        return None
    rest = [word for word in rest if not word.startswith(("--processes=", "--devices=", "--with="))]
    if not rest:
        return None
    workdir = [] if any(word.startswith("--workdir=") for word in rest) else ["--workdir=runs/x"]
    return ["quantize", f"--config={rest[0]}", *workdir, *rest[1:]]


@pytest.mark.parametrize(
    ("name", "words"), COMMANDS, ids=[f"{name}-{words[0]}-{words[1:2]}" for name, words in COMMANDS]
)
def test_every_command_is_understood(understand, tmp_path, name, words):
    if words[0] == "sbatch":
        words = words[words.index("launch/slurm.sbatch") :]
    if words[0] == "adadfq":
        understand(*words[1:])
    elif words[0] == "pip":
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        assert words[1] == "install"
        for extra in re.findall(r"\w+", words[2].partition("[")[2]):
            assert extra in config["options.extras_require"]
    elif words[0] == "python" and words[1].startswith("adadfq_jax/assets/"):
        scripts = {s.__file__: s for s in (draw_curves, play_transcription, train_teachers)}
        scripts[str(ROOT / words[1])].parse(words[2:])
    elif words[0].removeprefix("./").startswith("launch/"):
        assert os.access(ROOT / words[0], os.X_OK)
        (tmp_path / "pod1").write_text("zone=us-west4-a\ntype=v5litepod-16\n")
        if "test.sh" not in words[0] and "local.sh" not in words[0]:
            made = tmp_path / ("none" if "create" in words else "")
            # A teacher of the reader's is taken to be there.
            theirs = re.compile(r"(--config\.teacher\.path=)(?!gs://).*")
            rest = [theirs.sub(rf"\g<1>{README}", word) for word in words[1:]]
            rest = [word.replace("=wheels", f"={tmp_path}") for word in rest]
            done = subprocess.run(
                [ROOT / words[0], *rest, "--dry-run"],
                env=os.environ | {"ADADFQ_PODS": str(made)},
                capture_output=True,
                text=True,
                cwd=ROOT,
            )
            assert done.returncode == 0, done.stderr
        if (argv := as_adadfq(words)) is not None:
            understand(*argv)
    else:
        pytest.fail(f"{name} has a command of an unknown kind: {shlex.join(words)}")


@pytest.fixture(scope="module")
def flags():
    """The flags of every verb, by verb, and those of the scripts."""
    found = {}
    for verb in verbs.VERBS:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main.run([verb, "--help"]) == 0
        found[verb] = set(re.findall(r"^  --(\w+)", printed.getvalue(), re.MULTILINE))
    scripts = "".join(path.read_text() for path in sorted((ROOT / "launch").iterdir()))
    found["scripts"] = set(re.findall(r"--([a-z_]+)", scripts))
    return found


@of_each_document
def test_every_flag_and_field_in_the_text_exists(flags, name):
    sections = {key for key, value in default_config().items() if hasattr(value, "items")}
    for code in quoted(DOCUMENTS[name]):
        verb = re.match(r"(?:adadfq|python -m adadfq_jax) (\w+)", code)
        known = flags[verb[1]] if verb else set().union(*flags.values())
        for flag in re.findall(r"(?:^|\s)--([\w.]+)", code):
            if flag.startswith("config."):
                if flag != "config.FIELD":
                    find_field(flag.removeprefix("config."))
            else:
                assert flag in known, f"{name}: {code}"
        field = re.match(r"(\w+)\.\w+(?:=|$)", code)
        if field and field[1] in sections and not code.endswith((".py", ".png", ".safetensors")):
            find_field(code.partition("=")[0])
