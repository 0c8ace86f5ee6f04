import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]


def run(*argv, **environment):
    return subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment
    )


def write_script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sh(path):
    done = run("sh", "-n", path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    done = run("shellcheck", "--shell=sh", "--external-sources", "--severity=warning", path)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ["local.sh", "test.sh", "prepare_data.sh"])
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(tmp_path, name, flag):
    done = run(ROOT / "launch" / name, flag, ADADFQ_VENV=str(tmp_path / "venv"))
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("argv", [["local.sh"], ["prepare_data.sh"], ["prepare_data.sh", "--x=1"]])
def test_no_configuration_or_name(tmp_path, argv):
    done = run(ROOT / "launch" / argv[0], *argv[1:], ADADFQ_VENV=str(tmp_path / "venv"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: ")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("name", ["local.sh", "test.sh", "prepare_data.sh"])
@pytest.mark.parametrize("python", ["too_old", "missing"])
def test_python_too_old_or_missing(tmp_path, name, python):
    write_script(tmp_path / "too_old", "exit 1")
    done = run(
        ROOT / "launch" / name,
        "configs/digits_resnet20.py",
        PYTHON=str(tmp_path / python),
        ADADFQ_VENV=str(tmp_path / "venv"),
    )
    assert done.returncode == 2
    assert "needs Python 3.11 or newer" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


@pytest.fixture
def environment(tmp_path):
    """A stub of an interpreter that makes stubs of environments and notes its calls in `log`."""
    log = tmp_path / "log"
    log.touch()
    note = f'(IFS="|"; echo "$*") >>{log}'
    made = write_script(tmp_path / "made", f"{note}\n[ ! -e {tmp_path}/broken ] || exit 1")
    python = write_script(
        tmp_path / "python",
        f'{note}\nif [ "$2" = venv ]; then mkdir -p "$3/bin"; cp {made} "$3/bin/python"; fi',
    )
    # No GPU, whatever the machine has.
    write_script(tmp_path / "nvidia-smi", "exit 1")

    def call(*argv):
        log.write_text("")
        done = run(
            *argv,
            PYTHON=str(python),
            ADADFQ_VENV=str(tmp_path / "venv"),
            PATH=f"{tmp_path}:{os.environ['PATH']}",
        )
        return done, log.read_text().splitlines()

    return call


def installs(calls):
    return [call for call in calls if "pip|install" in call]


def test_local_installs_once_and_hands_everything_on(environment, tmp_path):
    argv = (
        ROOT / "launch" / "local.sh",
        "configs/digits_resnet20.py:w3a3",
        "--workdir=a b",
        "--config.quant.overrides=('stem_*=w8a8',)",
    )
    done, calls = environment(*argv)
    assert done.returncode == 0, done.stderr
    (installed,) = installs(calls)
    assert f"--constraint|{ROOT}/requirements.txt" in installed
    assert installed.endswith(f"--editable|{ROOT}")
    assert calls[-1] == (
        "-m|adadfq_jax|quantize|--config=configs/digits_resnet20.py:w3a3|"
        f"--workdir={ROOT}/runs/digits_resnet20_w3a3|--workdir=a b|"
        "--config.quant.overrides=('stem_*=w8a8',)"
    )
    _, calls = environment(*argv)
    assert not installs(calls)
    assert len(calls) == 1


def test_a_failed_installation_is_tried_again(environment, tmp_path):
    argv = (ROOT / "launch" / "local.sh", "configs/digits_resnet20.py")
    (tmp_path / "broken").touch()
    done, _ = environment(*argv)
    assert done.returncode != 0
    (tmp_path / "broken").unlink()
    done, calls = environment(*argv)
    assert done.returncode == 0
    assert installs(calls)


def test_test_installs_the_extras_lints_and_tests(environment):
    done, calls = environment(ROOT / "launch" / "test.sh", "-k", "a or b")
    assert done.returncode == 0, done.stderr
    assert installs(calls)[0].endswith(f"--editable|{ROOT}[test]")
    assert [call.split("|")[1] for call in calls[-3:]] == ["ruff", "ruff", "pytest"]
    assert calls[-1].endswith("-k|a or b")


def test_prepare_data_installs_tensorflow_and_hands_everything_on(environment):
    argv = ("imagenet2012", "--data_dir=a b", "--manual_dir=archives")
    done, calls = environment(ROOT / "launch" / "prepare_data.sh", *argv)
    assert done.returncode == 0, done.stderr
    assert installs(calls)[0].endswith(f"--editable|{ROOT}[tf]")
    assert calls[-1] == "-m|adadfq_jax.data.prepare|" + "|".join(argv)
