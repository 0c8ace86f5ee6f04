"""The command line: bad input, exit codes, signals, help."""

import contextlib
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from adadfq_jax import __version__
from adadfq_jax.cli import ending, main
from adadfq_jax.cli.flags import parse
from adadfq_jax.cli.table import FLAGS
from adadfq_jax.config import recipes
from adadfq_jax.config.fields import default_config
from adadfq_jax.devices import pmap
from adadfq_jax.errors import DivergedError, StoppedError, VerificationError
from adadfq_jax.models import registry
from adadfq_jax.teachers.load import save_teacher
from adadfq_jax.training import quantize as quantize_module
from adadfq_jax.training.workdir import Workdir
from tests import ROOT
from tests.conftest import SIZE, make_result, make_teacher, one_sentence

BASE = ROOT / "configs" / "base.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Teachers, good and bad, evaluation sets and configurations."""
    folder = tmp_path_factory.mktemp("files")
    teacher = make_teacher()
    params = dict(teacher.variables["params"])
    kernel = params.pop("stem_conv")["kernel"]

    def with_params(changed):
        return dataclasses.replace(
            teacher, variables=teacher.variables | {"params": params | changed}
        )

    for name, saved in {
        "good": teacher,
        "lacking": with_params({}),
        "renamed": with_params({"stem_cnv": {"kernel": kernel}}),
        "shape": with_params({"stem_conv": {"kernel": kernel[..., :-1].copy()}}),
        "infinite": with_params({"stem_conv": {"kernel": kernel + np.inf}}),
        "classes": dataclasses.replace(teacher, module=registry.build("resnet8_cifar", 11)),
        "network": dataclasses.replace(teacher, architecture="resnet9_cifar"),
    }.items():
        save_teacher(saved, folder / f"{name}.safetensors")
    content = (folder / "good.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "text.safetensors").write_text("no teacher")
    (folder / "teacher.txt").write_bytes(content)
    safetensors.numpy.save_file({"x": kernel}, folder / "foreign.safetensors")

    labels = np.arange(10)
    images = np.zeros((10, SIZE, SIZE, 3), np.uint8)
    np.savez(folder / "good.npz", x=images, y=labels)
    np.savez(folder / "labels.npz", x=images, y=labels + 1)
    np.savez(folder / "size.npz", x=images[:, 1:], y=labels)
    (folder / "text.npz").write_text("no data")

    for name, text in {
        "syntax": "def get_config(:",
        "nothing": "x = 1",
        "failing": "def get_config(): return 1 / 0",
        "returning": "def get_config(): return 3",
        "importing": "import no_such_module",
        "reading": "def get_config(): return open('/no/such/file')",
        "noarg": "def get_config(): return {}",
        "lacking": "from adadfq_jax.config.fields import default_config\n"
        "def get_config():\n"
        "    config = default_config('w4a4')\n"
        "    with config.unlocked():\n"
        "        del config.batch_size\n"
        "    return config\n",
    }.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def quantize(files, tmp_path, monkeypatch, capfd):
    """Returns a function that runs a `quantize` that must fail, and returns what stderr says."""

    def no_program(*_args, **_kwargs):
        raise AssertionError("bad input was not noticed before compiling")

    monkeypatch.setattr(pmap, "map_over_devices", no_program)
    # A file is executed in the module of the one before, which may have had a get_config.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    monkeypatch.chdir(ROOT)

    def run(*argv, workdir=tmp_path / "run"):
        before = contents(tmp_path)
        argv = [word.format(files=files) for word in argv]
        if not any(word.partition("=")[0] == "--config" for word in argv):
            argv.insert(0, f"--config={BASE}")
        teacher = f"--config.teacher.path={files / 'good.safetensors'}"
        given = [f"--workdir={workdir}"] if workdir else []
        # What a test gives comes last and wins.
        code = main.run(["quantize", argv[0], teacher, "--cache=", *given, *argv[1:]])
        assert contents(tmp_path) == before
        return one_sentence(code, *capfd.readouterr())

    return run


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


TEACHER = "--config.teacher.path={files}/"
DATA = ("--config.data.source=npz", "--config.data.path={files}/")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        # Configuration files.
        (["--config=configs/digits.py"], "no configuration file 'configs/digits.py' did you mean"),
        (
            ["--config=configs"],
            "no configuration 'configs': known: base, cifar100_resnet20, FILE.py",
        ),
        (["--config=digits:w4a4"], "no configuration 'digits' digits_resnet20"),
        (["--config={files}/syntax.py"], "configuration file SyntaxError"),
        (["--config={files}/nothing.py"], "configuration file no attribute 'get_config'"),
        (["--config={files}/failing.py"], "configuration file ZeroDivisionError"),
        (["--config={files}/importing.py"], "configuration file no_such_module"),
        (["--config={files}/reading.py"], "'/no/such/file'"),
        (["--config={files}/noarg.py:w4a4"], "noarg.py:w4a4 takes 0 positional arguments"),
        (["--config=configs/base.py:w0a4"], "weight bits between 1 and 8, not 0."),
        (["--config=configs/base.py:w9a4"], "weight bits between 1 and 8, not 9."),
        (["--config=configs/base.py:w33a4"], "weight bits between 1 and 8, not 33."),
        (["--config=configs/base.py:w4a9"], "activation bits between 1 and 8, not 9."),
        (["--config=configs/base.py:4bit"], "written like w4a4, not '4bit'"),
        # Fields.
        (["--config.batchsize=4"], "unknown field 'batchsize' batch_size"),
        (["--config.game.alphads=4"], "unknown field 'game.alphads' game.alpha_ds"),
        (["--config.batch_size=four"], "config.batch_size=four"),
        (["--config.batch_size=1"], "batch_size must be at least 2, not 1."),
        (["--config.batch_size=4.5"], "config.batch_size=4.5"),
        (["--config.game.beta=x"], "config.game.beta=x"),
        (["--config.quant.weight_bits=9"], "quant.weight_bits between 1 and 8, not 9."),
        (["--config.quant.overrides=('stem_cnv=w8',)"], "'stem_cnv=w8' no layer stem_conv"),
        (["--config.quant.overrides=stem"], "quant.overrides takes entries like not 'stem'"),
        (["--config.batch_size=6"], "batch_size=6 does not divide evenly over 4 devices"),
        (["--config.devices=5"], "devices=5, but this machine has 4"),
        (["--config.batch_size=2", "--config.devices=4"], "at most devices, not 4 `adadfq sweep`"),
        (["--config.precision.student=bfloat16"], "precision.student must be 'float32', not"),
        (["--config.precision.teacher=float8"], "precision.teacher 'float8' float32"),
        (["--config.teacher.image_size=10"], "image_size=8, but 10 was asked for"),
        # Several processes.
        (["--processes=2"], "--coordinator, --processes and --process need --distributed"),
        (["--distributed", "--processes=2"], "--coordinator, --process is missing"),
        # Teachers.
        (["--config.teacher.architecture=resnet21_cifar"], "'resnet21_cifar' resnet20_cifar"),
        (["--config.teacher.architecture=resnet20_cifar"], "resnet8_cifar resnet20_cifar"),
        (["--config.teacher.digest=123"], "teacher.digest says 123"),
        ([TEACHER + "missing.safetensors"], "no teacher file missing.safetensors"),
        ([TEACHER], "is a folder"),
        ([TEACHER + "teacher.txt"], "teacher.txt' is not a teacher file .safetensors .th"),
        ([TEACHER + "truncated.safetensors"], "truncated.safetensors' is not a readable"),
        ([TEACHER + "text.safetensors"], "text.safetensors' is text"),
        ([TEACHER + "foreign.safetensors"], "foreign.safetensors'"),
        ([TEACHER + "lacking.safetensors"], "lacks 'params/stem_conv/kernel'"),
        ([TEACHER + "renamed.safetensors"], "'params/stem_cnv/kernel' params/stem_conv/kernel"),
        ([TEACHER + "shape.safetensors"], "(3, 3, 3, 15) needs (3, 3, 3, 16)"),
        ([TEACHER + "infinite.safetensors"], "'params/stem_conv/kernel' infinite"),
        ([TEACHER + "classes.safetensors"], "params/classifier/ 10 needs 11"),
        ([TEACHER + "network.safetensors"], "unknown network 'resnet9_cifar' resnet8_cifar"),
        (
            ["--config.data.mean=(0.1,0.1,0.1)", "--config.data.std=(0.25,0.25,0.25)"],
            "good.safetensors mean=[0.5, 0.5, 0.5] [0.1, 0.1, 0.1]",
        ),
        # Data.
        (["--config.data.source=npy"], "unknown data.source 'npy' npz"),
        (["--config.data.source=npz"], "needs data.path"),
        ([DATA[0], DATA[1] + "missing.npz"], "no data file missing.npz"),
        ([DATA[0], DATA[1] + "text.npz"], "text.npz' is not an .npz file"),
        ([DATA[0], DATA[1] + "size.npz"], "size.npz 7x8 pixels 8x8"),
        ([DATA[0], DATA[1] + "labels.npz"], "labels.npz has a label 10 classes 0 to 9"),
        ([DATA[0], DATA[1] + "good.npz", "--config.evaluation.subset=99"], "too few for a subset"),
        # Flags.
        (["--config.seed=1", "stray"], "'stray' is not a flag"),
        (["--wrokdir=x"], "'wrokdir' workdir"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(quantize, argv, words):
    sentence = quantize(*argv)
    for word in words.split(" "):
        assert word in sentence
    assert sentence.startswith("adadfq quantize: ")


def test_missing_workdir(quantize):
    assert "--workdir=DIR is missing" in quantize("--config.seed=1", workdir=None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "--config=NAME is missing"),
        (["--config={files}/returning.py"], "returned 3, not a ConfigDict"),
        (["--config={files}/reading.py"], "'/no/such/file'"),
        ([f"--config={BASE}"], "there is no teacher: give one with"),
        (["--config={files}/lacking.py"], "batch_size"),
        (["--config={files}/none/a.py"], "none/a.py'; nor one of a similar name there."),
    ],
)
def test_configuration_alone(files, tmp_path, capfd, argv, words):
    argv = [word.format(files=files) for word in argv]
    code = main.run(["quantize", *argv, f"--workdir={tmp_path / 'run'}", "--cache="])
    assert words in one_sentence(code, *capfd.readouterr())
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_workdir_that_is_a_file(quantize, tmp_path, name):
    (tmp_path / "file").write_text("mine")
    assert "is a file" in quantize("--config.seed=1", workdir=tmp_path / name)


def test_workdir_that_cannot_be_written(quantize):
    assert "'/proc/run' cannot be written" in quantize("--config.seed=1", workdir="/proc/run")


def test_workdir_in_use(quantize, tmp_path):
    folder = Workdir(tmp_path / "run")
    assert "in use by another run" in quantize("--config.seed=1")
    folder.close()


def test_workdir_of_another_identity(quantize, tmp_path):
    config = default_config("w4a4")
    teacher = make_teacher()
    config.teacher.architecture, config.teacher.digest = teacher.architecture, teacher.digest
    config.teacher.image_size, config.teacher.classes = teacher.image_size, teacher.classes
    config.data.mean, config.data.std = teacher.mean, teacher.std
    config = config.copy_and_resolve_references()
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    folder = Workdir(tmp_path / "run")
    folder.claim(config)
    folder.close()
    sentence = quantize(f"--config={BASE}:w3a4", "--config.seed=1", "--config.epochs=500")
    assert "(quant.weight_bits was 4, is 3; seed was 0, is 1)" in sentence


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["quantise"], "unknown verb 'quantise': did you mean quantize?"),
        (["quantize", "--config=configs/base.py", "--workdir={run}"], "there is no teacher"),
    ],
)
def test_bad_input_of_the_program(tmp_path, argv, words):
    argv = [word.format(run=tmp_path / "run") for word in argv]
    done = subprocess.run(
        [sys.executable, "-m", "adadfq_jax", *argv], cwd=ROOT, capture_output=True, text=True
    )
    err = done.stderr
    if argv[0] == "quantize":  # a verb of ours begins with a line, before JAX is imported
        first, _, err = err.partition("\n")
        assert first == "adadfq quantize: starting; loading JAX takes some seconds"
    assert words in one_sentence(done.returncode, done.stdout, err)
    assert contents(tmp_path) == {}


def test_the_first_line_is_there_before_jax_is_imported():
    """JAX is put out of reach, and the line is there nevertheless."""
    program = (
        "import sys; sys.modules['jax'] = None; from adadfq_jax.cli import main; "
        "main.main(['quantize', '--config=digits_resnet20', '--workdir=x'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.startswith("adadfq quantize: starting; loading JAX takes some seconds\n")
    assert "import of jax halted" in done.stderr


def test_ctrl_c_is_acknowledged_while_something_compiles():
    """The main thread does not run a handler before its one long call ends."""
    program = (
        "import hashlib, sys\n"
        "from adadfq_jax.cli.process import acknowledging, listening\n"
        "import subprocess\n"
        "with acknowledging(), listening() as received:\n"
        "    child = subprocess.Popen(['sleep', '600'], process_group=0)\n"
        "    print(child.pid, flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'a', b'b', int(sys.argv[1]))\n"
        "    child.kill()\n"
        "    print('stopping for', received[-1], flush=True)\n"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def start(rounds):
        process = subprocess.Popen([sys.executable, "-c", program, rounds], cwd=ROOT, **pipes)
        return process, int(process.stdout.readline())

    process, child = start("1_000_000_000")
    with process:
        time.sleep(1)  # until the long call has begun, in which no handler runs
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline().startswith(
            "SIGINT: stopping after what is under way, a step"
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stdout.read() == ""
        assert process.stderr.read() == "SIGINT again: ended.\n"
    # What it has started has ended, or is about to: no process of that number is left running.
    with contextlib.suppress(FileNotFoundError):
        for _ in range(100):
            if Path(f"/proc/{child}/stat").read_text().split()[2] == "Z":
                break
            time.sleep(0.1)
        else:
            pytest.fail("the child runs on")
    with start("3_000_000")[0] as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "stopping for 15\n"
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_lists_the_verbs(capfd, argv):
    assert main.run(argv) == 0
    out, err = capfd.readouterr()
    assert "quantize" in out
    assert err == ""


def test_version(capfd):
    assert main.run(["--version"]) == 0
    assert capfd.readouterr() == (f"adadfq_jax {__version__}\n", "")


def test_no_verb_is_bad_input(capfd):
    assert main.run([]) == 2
    out, err = capfd.readouterr()
    assert "usage: adadfq VERB" in err
    assert out == ""


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--config=missing.py", "--help"]])
def test_help_of_a_verb_lists_its_flags(capfd, argv):
    assert main.run(["quantize", *argv]) == 0
    out, err = capfd.readouterr()
    for name in ("--config", "--workdir", "--cache"):
        assert name in out
    assert err == ""


def test_a_benchmark_of_a_configuration_that_lacks_a_field(files, capfd):
    code = main.run(["benchmark", f"--config={files / 'lacking.py'}"])
    assert "batch_size" in one_sentence(code, *capfd.readouterr())


def test_what_the_next_commands_need_is_installed_first(monkeypatch, tmp_path):
    student = types.SimpleNamespace(result=make_result())
    monkeypatch.setattr(ending, "missing_packages", lambda extra: [])
    (tmp_path / "student.onnx").touch()
    assert ending.next_commands(student, str(tmp_path))[1].endswith("student.onnx --overwrite")
    assert len(ending.next_commands(student, "runs/a b")) == 3
    assert "'--workdir=runs/a b'" in ending.next_commands(student, "runs/a b")[0]
    monkeypatch.setattr(ending, "missing_packages", lambda extra: ["some"])
    monkeypatch.chdir(ROOT)
    assert ending.next_commands(student, "x")[0] == "./launch/local.sh --with=export,report"


@pytest.fixture
def played(monkeypatch, tmp_path):
    """Returns a function that runs `quantize` with another function in the game's place."""

    def run(play):
        monkeypatch.setattr(quantize_module, "quantize", play)
        return main.run(["quantize", f"--config={BASE}", f"--workdir={tmp_path}", "--cache="])

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DivergedError("it diverged."), 3),
        (VerificationError("it differs."), 4),
        (StoppedError("it stopped.", signal.SIGTERM), 75),
        (StoppedError("it stopped.", signal.SIGINT), 130),
        (OSError(28, "No space left on device"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(played, capfd, error, code):
    def play(*_args, **_kwargs):
        raise error

    assert played(play) == code
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert isinstance(error, KeyboardInterrupt) or str(error) in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_handed_to_the_game(played, number):
    before = signal.getsignal(number)

    def play(config, workdir, should_stop):
        assert should_stop() is None
        os.kill(os.getpid(), number)
        assert should_stop() == number
        raise StoppedError("it stopped.", should_stop())

    assert played(play) in (75, 130)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("text", "lines"), [("Event loop is closed", 0), ("other", 1)])
def test_a_known_complaint_of_a_thread_is_dropped(monkeypatch, capfd, text, lines):
    """To the end of the process, not only to that of the verb."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back afterwards

    class Complaint:
        def __del__(self):
            raise RuntimeError(text)

    with pytest.raises(SystemExit):
        main.main(["help"])
    Complaint()
    assert capfd.readouterr().err.count(f"RuntimeError: {text}") == lines


@pytest.mark.filterwarnings("always:a checkpoint")
def test_success_prints_what_was_measured_and_what_comes_next(played, capfd, tmp_path):
    def play(*_args, **_kwargs):
        warnings.warn("a checkpoint is damaged.", stacklevel=1)
        result = make_result(top1=0.975, healthiest_top1=0.97, healthiest_step=150)
        teacher = make_teacher()
        variables = teacher.variables | {"bits": {"stem_conv": {"weight": np.int32(4)}}}
        return types.SimpleNamespace(result=result, teacher=teacher, variables=variables)

    assert played(play) == 0
    out, err = capfd.readouterr()
    first, *others = out.splitlines()
    assert first.split() == ["student", "top-1,", "last", "97.50%"]
    assert "97.00% (step 150, chosen without data" in out
    assert re.search(
        r"size +[\d,]+ kB of packed numbers, [\d.]+ times less than the teacher.s [\d,]+ kB", out
    )
    # The next commands can be pasted: each is one that the program understands.
    commands = [shlex.split(line) for line in others[others.index("next:") + 1 :]]
    for verb in ("evaluate", "export", "report"):
        (words,) = (words for words in commands if verb in words)
        flags = words[words.index(verb) + 1 :]
        assert f"--workdir={tmp_path}" in flags
        parse(verb, FLAGS[verb], flags)
    assert err == "warning: a checkpoint is damaged.\n"
