"""The launch scripts, with stubs in the place of what they call."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import ROOT

SCRIPTS = [*sorted((ROOT / "launch").glob("*.s*h")), ROOT / ".ci" / "run"]


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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    done = run(
        Path(sys.executable).parent / "shellcheck",
        "--shell=sh",
        "--external-sources",
        "--severity=warning",
        path,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    "name", [path.name for path in SCRIPTS if path.name not in ("run", "environment.sh")]
)
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


@pytest.mark.parametrize("name", ["local.sh", "test.sh", "prepare_data.sh", "gpu_measure.sh"])
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
    # With -I it is asked whether this clone is installed: no, where there is a file `other`.
    asked = f'if [ "$1" = -I ]; then [ ! -e {tmp_path}/other ]; exit; fi'
    failing = f"[ ! -e {tmp_path}/broken ] || exit 1"
    made = write_script(tmp_path / "made", f"{asked}\n{note}\n{failing}")
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
        "digits_resnet20:w3a3",
        "--workdir=a b",
        "--config.quant.overrides=('stem_*=w8a8',)",
    )
    done, calls = environment(*argv)
    assert done.returncode == 0, done.stderr
    (installed,) = installs(calls)
    assert f"--constraint|{ROOT}/requirements.txt" in installed
    assert installed.endswith(f"--editable|{ROOT}")
    assert calls[-1] == (
        "-m|adadfq_jax|quantize|--config=digits_resnet20:w3a3|"
        "--workdir=a b|"
        "--config.quant.overrides=('stem_*=w8a8',)"
    )
    _, calls = environment(*argv)
    assert not installs(calls)
    assert len(calls) == 1


def test_an_environment_of_another_clone_is_noticed(environment, tmp_path):
    argv = (ROOT / "launch" / "local.sh", "digits_resnet20")
    environment(*argv)
    (tmp_path / "other").touch()
    done, calls = environment(*argv)
    assert done.returncode == 0, done.stderr
    (installed,) = installs(calls)
    assert installed.endswith(f"--editable|{ROOT}")


def test_what_another_clone_has_installed_is_told(tmp_path):
    """With an interpreter that has no adadfq_jax, or one of another place."""
    script = write_script(
        tmp_path / "look.sh",
        f"ADADFQ_ROOT={tmp_path} ADADFQ_VENV={tmp_path}/venv\n. {ROOT}/launch/environment.sh\n"
        f"python={sys.executable}\nis_this_clone",
    )
    done = run(script)
    assert done.returncode == 1
    assert "and not this clone: installing again" in done.stderr


def test_extras_alone_and_with_a_configuration(environment):
    script = ROOT / "launch" / "local.sh"
    done, calls = environment(script, "--with=report,torch")
    assert done.returncode == 0, done.stderr
    (installed,) = installs(calls)
    assert installed.endswith(f"--editable|{ROOT}[report,torch]")
    assert "--extra-index-url|https://download.pytorch.org/whl/cpu" in installed
    assert "quantize" not in calls[-1]
    # Without extras nothing more is installed; with others, they are.
    assert not installs(environment(script, "digits_resnet20")[1])
    _, calls = environment(script, "digits_resnet20", "--with=export", "--config.seed=1")
    assert installs(calls)[0].endswith(f"--editable|{ROOT}[export]")
    assert "--extra-index-url" not in installs(calls)[0]
    assert calls[-1].endswith("/runs/digits_resnet20|--config.seed=1")
    done, calls = environment(script, "--with=tourch")
    assert (done.returncode, calls) == (2, [])
    known = "all, allocate, cuda, export, gcs, openvino, report"
    assert f"no extra 'tourch': known: {known}" in done.stderr


@pytest.mark.parametrize("before", [True, False], ids=["before_anything_exists", "afterwards"])
def test_a_dry_run_of_this_machine(environment, tmp_path, before):
    script = ROOT / "launch" / "local.sh"
    if not before:
        environment(script, "digits_resnet20")
    done, calls = environment(script, "--dry-run", "digits_resnet20:w3a3", "--config.seed=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/venv/bin/python -m adadfq_jax quantize --config=di")
    assert (tmp_path / "venv").exists() != before
    assert [call.endswith("--config.seed=1|--dry_run") for call in calls] == (
        [] if before else [True]
    )


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry_run"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits"], "no configuration 'digits': known: base, cifar100_resnet20"),
        (["configs/digits.py"], "no configuration file 'configs/digits.py'"),
        (["cifar10_resnet20"], "there is no teacher: give one with --config.teacher.path=FILE"),
        (["configs/base.py:w3a3"], "there is no teacher: give one"),
        (["base", "--config.teacher.path=no.pth"], "there is no teacher file 'no.pth'"),
        (["digits_resnet20", "--workdir=setup.cfg"], "workdir 'setup.cfg' is a file"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_made(environment, tmp_path, dry, argv, message):
    done, calls = environment(ROOT / "launch" / "local.sh", *argv, *dry)
    assert (done.returncode, done.stdout, calls) == (2, "", [])
    assert message in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_file_of_the_project_is_found_from_any_folder(environment, tmp_path):
    done, calls = environment(
        "sh",
        "-c",
        f"cd {tmp_path} && {ROOT}/launch/local.sh configs/base.py "
        f"--config.teacher.path={ROOT}/setup.cfg",
    )
    assert done.returncode == 0, done.stderr
    assert f"--config={ROOT}/configs/base.py|--workdir={ROOT}/runs/base|" in calls[-1]


def test_a_failed_installation_is_tried_again(environment, tmp_path):
    argv = (ROOT / "launch" / "local.sh", "digits_resnet20")
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


@pytest.mark.parametrize(
    ("name", "extras"), [("gpu_measure.sh", "test"), ("tpu_measure.sh", "tpu,test")]
)
def test_a_measurement_has_an_environment_and_all_flags(environment, name, extras):
    done, calls = environment(ROOT / "launch" / name, "--minutes=8", "--output=a b")
    assert done.returncode == 0, done.stderr
    assert installs(calls)[0].endswith(f"--editable|{ROOT}[{extras}]")
    assert calls[-1] == (
        f"-m|adadfq_jax|measure|--platform={name[:3]}|--output={ROOT}/runs/measured|"
        "--minutes=8|--output=a b"
    )


def test_a_measurement_without_a_network_takes_wheels(environment, tmp_path):
    wheels = tmp_path / "some wheels"
    wheels.mkdir()
    (wheels / "grain-1.whl").touch()
    argv = (ROOT / "launch" / "gpu_measure.sh", f"--wheels={wheels}", "--minutes=8")
    done, calls = environment(*argv)
    assert done.returncode == 0, done.stderr
    (installed,) = installs(calls)
    assert "|--no-index|--no-deps|" in installed
    assert installed.endswith(f"|--target|{ROOT}/runs/wheels|{wheels}/grain-1.whl")
    assert calls[-1].endswith(f"|measure|--platform=gpu|--output={ROOT}/runs/measured|--minutes=8")
    assert not (tmp_path / "venv").exists()
    done, calls = environment(*argv, "--dry-run")
    assert (done.returncode, calls) == (0, [])
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("problem", ["no_folder", "too_old", "missing"])
def test_a_measurement_without_a_network_says_what_it_lacks(tmp_path, problem):
    (tmp_path / "wheels").mkdir()
    write_script(tmp_path / "too_old", "exit 1")
    # What is asked for a list of packages has a list.
    write_script(tmp_path / "missing", '[ $# -lt 5 ] || echo "grain ml_collections"')
    done = run(
        ROOT / "launch" / "gpu_measure.sh",
        f"--wheels={tmp_path / ('none' if problem == 'no_folder' else 'wheels')}",
        PYTHON=str(tmp_path / problem),
    )
    said = {
        "no_folder": "there is no folder",
        "too_old": "needs Python 3.11 or newer",
        "missing": "missing lacks grain, ml_collections: lay their wheels into",
    }
    assert (done.returncode, done.stdout) == (2, "")
    assert said[problem] in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_a_package_needs_is_missing_too(tmp_path):
    (tmp_path / "grain.py").write_text("import no_such_package")
    done = run(
        ROOT / "launch" / "gpu_measure.sh",
        f"--wheels={tmp_path}",
        PYTHON=sys.executable,
        PYTHONPATH=str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{sys.executable} lacks no_such_package: lay their wheels into" in done.stderr


def test_a_measurement_runs_in_the_interpreter_that_is_there(tmp_path):
    """With this one, which lacks nothing, and a folder without wheels."""
    flags = (f"--wheels={tmp_path}", f"--output={tmp_path / 'out'}", "--minutes=0")
    done = run(ROOT / "launch" / "tpu_measure.sh", *flags, PYTHON=sys.executable)
    assert done.returncode == 2
    assert "adadfq measure: nothing is measured in" in done.stderr


@pytest.fixture
def cloud(tmp_path):
    """A `gcloud` that notes its calls; the slice's states and the game's codes come from a list.

    Returns a function that runs launch/tpu_pod.sh and returns (its exit code, stderr, the calls).
    """
    write_script(
        tmp_path / "gcloud",
        r"""
        cd "$(dirname "$0")"
        echo "$*" >>calls
        case "$*" in
        *\ create\ *) if [ -e refusing ]; then exit 1; else exit 0; fi ;;
        *pgrep*) exit 1 ;;
        *queued-resources\ describe*) next=queue ;;
        *describe*) next=states ;;
        *run.code\ 2*) next=codes ;;
        *) exit ;;
        esac
        case "$(head -n 1 $next)" in ERROR*) failed=1 ;; *) failed=0 ;; esac
        head -n 1 $next
        # The last one stays.
        [ "$(wc -l <$next)" -gt 1 ] && sed -i 1d $next
        exit $failed
        """,
    )
    write_script(tmp_path / "git", "exit 0")

    def call(*argv, states=("READY",), codes=("",), queue=("ACTIVE",)):
        (tmp_path / "calls").write_text("")
        (tmp_path / "queue").write_text("".join(f"{state}\n" for state in queue))
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
        done = run(
            ROOT / "launch" / "tpu_pod.sh",
            *argv,
            PATH=f"{tmp_path}:{os.environ['PATH']}",
            ADADFQ_PODS=str(tmp_path / "pods"),
            ADADFQ_POLL="0",
        )
        calls = [
            line.removeprefix("compute tpus ").replace("--zone=z --project=p", "ZONE")
            for line in (tmp_path / "calls").read_text().splitlines()
            if "pgrep" not in line
        ]
        return done.returncode, done.stderr, calls

    return call


CREATE = "tpu-vm create pod --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"
DESCRIBE = "tpu-vm describe pod --format=value(state) ZONE"
LOOK = "tpu-vm ssh pod --worker=0 --command=cat adadfq_jax/run.code 2>/dev/null ZONE"


def kinds(calls):
    """Names the calls of a game that is waited for."""
    return [
        {DESCRIBE: "describe", LOOK: "look"}.get(line)
        or ("play" if "quantize" in line else " ".join(line.split()[:2]))
        for line in calls
    ]


def make_pod(cloud, *flags):
    return cloud("create", "pod", "--zone=z", "--project=p", "--type=v5litepod-16", *flags)


def test_a_slice_from_creation_to_deletion(cloud, tmp_path):
    assert make_pod(cloud, "--spot") == (0, "", [f"{CREATE} --spot ZONE"])
    code, _, calls = cloud("setup", "pod")
    assert code == 0
    assert calls[0].startswith("tpu-vm scp ")
    assert calls[0].endswith(" pod:adadfq_jax.tar.gz --worker=all ZONE")
    assert calls[1:] == [
        "tpu-vm ssh pod --worker=all --command=mkdir -p adadfq_jax && tar -xzf adadfq_jax.tar.gz "
        "-C adadfq_jax && adadfq_jax/launch/tpu_vm_setup.sh ZONE"
    ]
    code, _, calls = cloud("run", "pod", "digits_resnet20:w4a4", "--workdir=/mnt/it's", "--detach")
    assert code == 0
    assert len(calls) == 1
    assert calls[0].startswith(
        "tpu-vm ssh pod --worker=all --command=cd adadfq_jax && rm -f run.code"
    )
    # What the workers' shell makes of it: no word is taken apart, none is lost.
    command = calls[0].partition("--command=")[2].removesuffix(" ZONE")
    (tmp_path / "adadfq_jax" / ".venv" / "bin").mkdir(parents=True)
    write_script(
        tmp_path / "adadfq_jax" / ".venv" / "bin" / "python", 'printf "%s\\n" "$@" >words; exit 3'
    )
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=20)
    code_file = tmp_path / "adadfq_jax" / "run.code"
    for _ in range(100):
        if code_file.exists() and code_file.read_text():
            break
        time.sleep(0.1)
    assert code_file.read_text() == "3\n"
    assert (tmp_path / "adadfq_jax" / "words").read_text().splitlines() == [
        *("-m", "adadfq_jax", "quantize", "--distributed"),
        *("--config=digits_resnet20:w4a4", "--workdir=/mnt/it's"),
    ]
    assert kinds(cloud("status", "pod")[2]) == ["describe", "tpu-vm ssh"]
    assert "tail -n 100 -F" in cloud("logs", "pod")[2][0]
    (stop,) = cloud("stop", "pod")[2]
    # It meets the game, and no shell that has the game's name among its words.
    pattern = re.search("pkill -TERM --oldest -f '(.*)'", stop)[1]
    for line, meant in (
        (".venv/bin/python -m adadfq_jax quantize --distributed", True),
        (".venv/bin/python -m adadfq_jax sweep --jobs=0", True),
        ("sh -c .venv/bin/python -m adadfq_jax quantize --distributed; echo $? >run.code", False),
        (f"bash -c {stop}", False),
    ):
        assert bool(re.search(pattern, line)) == meant
    assert cloud("delete", "pod")[2] == ["tpu-vm delete pod --quiet ZONE"]
    code, said, calls = cloud("status", "pod")
    assert (code, calls) == (2, [])
    assert "there is no slice 'pod'" in said


def test_a_queued_slice_is_waited_for(cloud):
    code, _, calls = make_pod(cloud, "--queued", "--version=v")
    assert (code, calls[1:]) == (0, [DESCRIBE])
    assert calls[0] == (
        "queued-resources create pod --node-id=pod --accelerator-type=v5litepod-16 "
        "--runtime-version=v ZONE"
    )
    assert cloud("delete", "pod")[2] == ["queued-resources delete pod --force --quiet ZONE"]


GAME = ("run", "pod", "digits_resnet20:w4a4", "--workdir=/mnt/run")


def test_a_sweep_is_played_by_all_chips(cloud):
    make_pod(cloud)
    flags = ("--workdir=gs://b/sweep", "--grid=bits=w3a3,w4a4;seed=0..4")
    code, said, calls = cloud("sweep", "pod", "digits_resnet20", *flags, codes=("", 75, 0))
    assert (code, said) == (0, "pod: the game is played on\n")
    played = [call for call in calls if "adadfq_jax sweep" in call]
    assert len(played) == 2
    for call in played:
        assert "--worker=all" in call
        assert "sweep --jobs=0 --config=" in call
        assert "--grid=bits=w3a3,w4a4;seed=0..4" in call
    code, said, calls = cloud("sweep", "pod", "digits_resnet20", "--grid=seed=0")
    assert (code, calls) == (2, [])
    assert "sweep needs --workdir=DIR, in Cloud Storage or" in said


@pytest.mark.parametrize("code", [0, 2, 3, 4])
def test_a_game_that_ended_is_not_played_again(cloud, code):
    make_pod(cloud)
    ended, _, calls = cloud(*GAME, codes=("", "", code))
    assert ended == code
    assert kinds(calls) == ["play", *["describe", "look"] * 3]


def test_a_preempted_game_is_played_on(cloud):
    """The slice stays: exit code 75 of the game."""
    make_pod(cloud)
    code, said, calls = cloud(*GAME, codes=("", 75, "", 0))
    assert (code, said) == (0, "pod: the game is played on\n")
    assert kinds(calls) == [
        "play",
        *["describe", "look"] * 2,
        *["describe", "play"],
        *["describe", "look"] * 2,
    ]


def test_a_game_that_crashed_is_played_on_three_times(cloud):
    """As JAX's runtime ends worker 0 where another is gone."""
    make_pod(cloud)
    code, said, calls = cloud(*GAME, codes=(134, 134, 0))
    assert (code, said) == (0, "pod: the game is played on\n" * 2)
    code, said, calls = cloud(*GAME, codes=(134,))
    assert (code, said) == (134, "pod: the game is played on\n" * 3)
    assert kinds(calls).count("play") == 4


def test_a_slice_that_is_known_is_not_made_again(cloud):
    """Its zone would be forgotten, and it could not be given back."""
    make_pod(cloud)
    code, said, calls = cloud("create", "pod", "--zone=other", "--type=t")
    assert (code, calls) == (2, [])
    assert "'pod' is made already" in said
    assert cloud("delete", "pod")[2] == ["tpu-vm delete pod --quiet ZONE"]
    assert make_pod(cloud)[0] == 0


def test_a_game_that_was_stopped_is_not_played_on(cloud, tmp_path):
    make_pod(cloud)
    write_script(tmp_path / "sleep", f": >{tmp_path}/pods/pod.stopped")  # while it is waited for
    code, _, calls = cloud(*GAME, codes=(75,))
    assert (code, kinds(calls)) == (75, ["play", "describe", "look"])


def test_a_slice_that_was_deleted_is_not_made_again(cloud, tmp_path):
    make_pod(cloud)
    write_script(tmp_path / "sleep", f"rm -f {tmp_path}/pods/pod")  # as `delete` elsewhere does
    code, _, calls = cloud(*GAME, states=("READY", "ERROR: NOT_FOUND"))
    assert code == 75
    assert not [call for call in calls if "create" in call]


def test_a_worker_that_is_not_reached_for_a_while_is_asked_again(cloud, tmp_path):
    """A start that fails while the slice is there."""
    make_pod(cloud)
    gcloud = (tmp_path / "gcloud").read_text()
    write_script(
        tmp_path / "gcloud",
        f'case "$*" in *nohup*) cd {tmp_path}; echo x >>starts; '
        '[ "$(wc -l <starts)" -ne 2 ] || exit 255 ;; esac\n' + gcloud.partition("\n")[2],
    )
    code, said, _ = cloud(*GAME, codes=(75, 0))
    assert code == 0
    assert said == "pod: the game is played on\npod: start failed\n"
    assert (tmp_path / "starts").read_text() == "x\n" * 3


def test_a_dry_run_after_a_stop_leaves_it_stopped(cloud, tmp_path):
    make_pod(cloud)
    cloud("stop", "pod")
    assert cloud(*GAME, "--dry-run")[0] == 0
    assert (tmp_path / "pods" / "pod.stopped").exists()


def test_a_queued_request_that_failed_is_not_waited_for(cloud):
    code, said, _ = make_pod_of(cloud, states=("ERROR: NOT_FOUND",), queue=("WAITING", "FAILED"))
    assert code == 2
    assert "the queued request for 'pod' has failed" in said
    assert cloud("delete", "pod")[0] == 0  # it is known, and can be given back


def make_pod_of(cloud, **answers):
    flags = ("--zone=z", "--project=p", "--type=v5litepod-16", "--queued")
    return cloud("create", "pod", *flags, **answers)


def test_a_lost_slice_is_made_again(cloud):
    make_pod(cloud, "--spot")
    # Where the cloud is not reached, nothing is concluded.
    states = ("READY", "ERROR: timeout", "PREEMPTED", "ERROR: NOT_FOUND", "READY")
    code, said, calls = cloud(*GAME, states=states, codes=("", "", 0))
    assert code == 0
    assert "pod is gone; it is made again" in said
    assert kinds(calls) == [
        *["play", "describe", "look", "describe", "look", "describe", "describe"],
        *["tpu-vm delete", "tpu-vm create", "tpu-vm scp", "tpu-vm ssh", "play", "describe", "look"],
    ]
    assert f"{CREATE} --spot ZONE" in calls


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["create", "pod", "--zone=z"], "needs --zone=ZONE and --type=TYPE"),
        (["create", "pod", "--zone=z", "--type=t", "--spots"], "knows no '--spots'"),
        (["run", "other", "digits_resnet20", "--workdir=/mnt/r"], "no slice 'other'"),
        (["run", "pod", "--workdir=/mnt/r"], "run needs a configuration"),
        (["run", "pod", "digits_resnet20"], "run needs --workdir=DIR"),
        (["stop", "pod", "--now"], "stop knows no '--now'"),
        (["sweeep", "pod"], "usage: "),
    ],
)
def test_bad_words_for_a_slice(cloud, argv, message):
    make_pod(cloud)
    code, said, calls = cloud(*argv)
    assert (code, calls) == (2, [])
    assert message in said


@pytest.mark.parametrize(
    ("flags", "states", "queue", "kept"),
    [
        ([], ["ERROR: NOT_FOUND"], ["ERROR"], False),
        (["--queued"], ["ERROR: NOT_FOUND"], ["ERROR"], False),
        ([], ["READY"], ["ERROR"], True),
        (["--queued"], ["ERROR: NOT_FOUND"], ["WAITING_FOR_RESOURCES"], True),
    ],
)
def test_a_creation_that_fails_is_forgotten(cloud, tmp_path, flags, states, queue, kept):
    """Unless the cloud has made something nevertheless, which must be given back."""
    (tmp_path / "refusing").touch()
    argv = ("create", "pod", "--zone=z", "--project=p", "--type=v5litepod-16", *flags)
    code, said, _ = cloud(*argv, states=states, queue=queue)
    assert code == 1
    assert (tmp_path / "pods" / "pod").exists() == kept
    assert ("delete pod' gives it back" if kept else "'pod' was not made.") in said


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry_run"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["digits", "--workdir=gs://b/r"], "no configuration 'digits': known: base"),
        (["configs/none.py", "--workdir=gs://b/r"], "no configuration file 'configs/none.py'"),
        (["teacher:w4a4", "--workdir=gs://b/r"], "there is no teacher"),
        (["digits_resnet20", "--workdir=runs/x"], "--workdir=runs/x would be in each worker's own"),
        (["digits_resnet20", "--workdir=/tmp/x"], "--workdir=/tmp/x lies on this machine's disk"),
        (["digits_resnet20"], "run needs --workdir=DIR"),
    ],
)
def test_a_call_for_a_slice_is_checked_before_it_is_made(cloud, dry, argv, message):
    make_pod(cloud)
    code, said, calls = cloud("run", "pod", *argv, *dry)
    assert (code, calls) == (2, [])
    assert message in said


def test_a_dry_run_needs_no_slice(cloud):
    for argv in (["setup", "pod"], [*GAME], ["stop", "pod"], ["delete", "pod"]):
        code, said, calls = cloud(*argv, "--dry-run")
        assert (code, said, calls) == (0, "", [])


def test_a_dry_run_calls_nothing(cloud):
    make_pod(cloud)
    for argv in (
        ["create", "b", "--zone=z", "--type=t"],
        ["setup", "pod"],
        [*GAME],
        ["stop", "pod"],
    ):
        code, _, calls = cloud(*argv, "--dry-run")
        assert (code, calls) == (0, [])


def test_the_commands_of_a_rehearsal():
    done = run(
        ROOT / "launch" / "cpu_pod.sh",
        *("digits_resnet20:w4a4", "--processes=2", "--devices=3", "--config.seed=7", "--dry-run"),
        "--config.quant.overrides=('it*=w8',)",
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for index, line in enumerate(lines):
        assert line.startswith("JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=3 ")
        assert f"--processes=2 --process={index} --config.seed=7" in line
        assert shlex.split(line)[-1] == "--config.quant.overrides=('it*=w8',)"
    done = run(ROOT / "launch" / "cpu_pod.sh", "digits_resnet20", "--processes=two")
    assert done.returncode == 2
    assert "must be positive numbers, not 'two'" in done.stderr
    done = run(ROOT / "launch" / "cpu_pod.sh", "digits_resnet20", "--workdir", "/r", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "write --workdir=DIR" in done.stderr


@pytest.fixture
def slurm(tmp_path):
    """Returns a function that runs launch/slurm.sbatch as a job that ends with a code."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    write_script(venv / "bin" / "python", "exit 0")
    write_script(tmp_path / "srun", f'echo "$@" >>{tmp_path}/calls; exit ${{CODE:-0}}')
    write_script(tmp_path / "scontrol", f'echo scontrol "$@" >>{tmp_path}/calls')

    def submit(*argv, **environment):
        (tmp_path / "calls").write_text("")
        done = run(
            ROOT / "launch" / "slurm.sbatch",
            *argv,
            PATH=f"{tmp_path}:{os.environ['PATH']}",
            ADADFQ_VENV=str(venv),
            SLURM_SUBMIT_DIR=str(ROOT),
            SLURM_JOB_ID="17",
            **environment,
        )
        calls = (tmp_path / "calls").read_text().replace(f"{venv}/bin/", "")
        return done.returncode, calls.splitlines()

    return submit


def test_a_job_of_several_tasks_is_one_game(slurm):
    command = "python -m adadfq_jax quantize --config=digits_resnet20 --distributed --workdir=r"
    words = ("quantize", "digits_resnet20", "--workdir=r")
    assert slurm(*words, SLURM_NTASKS="4") == (0, [command])
    assert slurm(*words) == (0, [command.replace("--distributed ", "")])
    assert slurm(*words, CODE="3") == (3, [command.replace("--distributed ", "")])
    code, calls = slurm(*words, SLURM_NTASKS="4", CODE="75")
    assert (code, calls) == (75, [command, "scontrol requeue 17"])
    code, calls = slurm(*words, SLURM_NTASKS="4", CODE="134", SLURM_RESTART_COUNT="2")
    assert (code, calls) == (134, [command, "scontrol requeue 17"])
    assert slurm(*words, SLURM_NTASKS="4", CODE="134", SLURM_RESTART_COUNT="3") == (134, [command])


def test_a_task_of_an_array_plays_a_sweeps_games(slurm):
    words = ("sweep", "digits_resnet20", "--workdir=r", "--grid=seed=0..3")
    assert slurm(*words, SLURM_NTASKS="4") == (
        0,
        ["python -m adadfq_jax sweep --config=digits_resnet20 --workdir=r --grid=seed=0..3"],
    )
    assert slurm("evaluate", "digits_resnet20")[0] == 2
    assert slurm(*words, "--dry-run") == (0, [])


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["job", "dry_run"])
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quantize", "digits_resnet20"], "quantize needs --workdir=DIR, on a disk that all nodes"),
        (["sweep", "digits_resnet20", "--grid=seed=0..3"], "sweep needs --workdir=DIR"),
        (["quantize", "digits", "--workdir=r"], "no configuration 'digits': known: base"),
        (["quantize", "teacher", "--workdir=r", "--config.teacher.path=no.pth"], "file 'no.pth'"),
    ],
)
def test_a_job_is_checked_before_an_environment_is_made(tmp_path, dry, argv, message):
    done = run(ROOT / "launch" / "slurm.sbatch", *argv, *dry, ADADFQ_VENV=str(tmp_path / "venv"))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []
