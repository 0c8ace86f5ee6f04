"""Sweeps: games that are not played (what is kept, skipped, told), and two with real ones."""

import csv
import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from adadfq_jax.cli import main, verbs
from adadfq_jax.config.identity import to_json
from adadfq_jax.errors import ConfigError, DivergedError, StoppedError, StorageError
from adadfq_jax.sweeps import sweep
from adadfq_jax.sweeps.grid import plan
from adadfq_jax.sweeps.sweep import run_sweep
from adadfq_jax.teachers.load import save_teacher
from adadfq_jax.training.workdir import Workdir
from tests import ROOT
from tests.conftest import make_result, make_small_config, make_teacher

GRID = "bits=w3a3,w4a4;seed=0..2"
TEACHER = make_teacher()
TABLES = ("table.md", "table.csv", "table.json")
NAMES = [f"{bits}_seed{seed}" for bits in ("w3a3", "w4a4") for seed in (0, 1, 2)]


def outcome(config):
    """The result of a game that nobody played; the worst is the one of seed 2."""
    top1 = [0.5, 0.6, 0.4][config.seed] + config.quant.weight_bits / 100
    return make_result(
        top1=top1,
        best_top1=top1 + 0.01,
        healthiest_top1=top1 + 0.005,
        steps=config.epochs * config.steps_per_epoch,
    )


@pytest.fixture
def played(monkeypatch):
    """Replaces the game; returns the names of those played. `fail` maps names to errors."""

    class Played(list):
        fail = {}  # noqa: RUF012

    names = Played()

    def play(config, teacher, workdir, *, should_stop, show_progress):
        folder = Workdir(workdir)
        try:
            folder.claim(config)
            names.append(workdir.name)
            if workdir.name in names.fail:
                raise names.fail[workdir.name]
            result = outcome(config)
            folder.write_text("result.json", to_json(dataclasses.asdict(result)))
        finally:
            folder.close()
        return types.SimpleNamespace(result=result)

    monkeypatch.setattr(sweep, "quantize", play)
    return names


def run(config, workdir, grid=GRID, **kwargs):
    return run_sweep(config, grid, workdir, teacher=TEACHER, **kwargs)


def test_every_game_is_played_once_and_averaged(small_config, tmp_path, played, capfd):
    table = run(small_config, tmp_path)
    assert played == NAMES
    assert table == json.loads((tmp_path / "table.json").read_text())
    three, four = table["rows"]
    assert three["fields"] == {"bits": "w3a3"}
    assert three["seeds"] == [0, 1, 2]
    assert three["top1"]["values"] == pytest.approx([0.53, 0.63, 0.43])
    assert three["top1"]["mean"] == pytest.approx(0.53)
    assert three["top1"]["std"] == pytest.approx(0.1)  # n - 1
    assert four["best_top1"]["mean"] == pytest.approx(0.55)
    text = (tmp_path / "table.md").read_text()
    assert (
        "| w3a3 | 3 | 90.00 ± 0.00 | 25.00 ± 0.00 | 53.00 ± 10.00 | 54.00 ± 10.00 | 53.50 ± 10.00 |"
        in text
    )
    with open(tmp_path / "table.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["bits"] for row in rows] == ["w3a3", "w4a4"]
    assert float(rows[1]["top1_mean"]) == pytest.approx(0.54)
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 6
    assert lines[1] == ("[2/6] w3a3_seed1: top-1 63.00% (calibrated 25.00%, teacher 90.00%), 3 s")

    played.clear()
    assert run(small_config, tmp_path) == table
    assert played == []
    assert capfd.readouterr().out == ""


def test_a_game_that_began_without_images(small_config, tmp_path, played, capfd, monkeypatch):
    monkeypatch.setattr(
        sys.modules[__name__],
        "outcome",
        lambda config, known=outcome: dataclasses.replace(known(config), calibrated_top1=None),
    )
    table = run(small_config, tmp_path, "seed=0")
    assert "seed0: top-1 54.00% (teacher 90.00%), 3 s" in capfd.readouterr().out
    assert table["rows"][0]["calibrated_top1"]["mean"] is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sweep.json", "sweep.json' is damaged"),
        ("table.md", "holds no sweep, but table.md, which a sweep or its report would replace"),
        ("table.csv", "holds no sweep, but table.csv"),
        ("table.json", "holds no sweep, but table.json"),
        ("report.html", "holds no sweep, but report.html"),
        ("report/surface.png", "holds no sweep, but report,"),
        ("seed1/student.onnx", "seed1' holds no run, but student.onnx, which a run"),
        ("seed1/diverged.json", "seed1' holds no run, but diverged.json"),
        ("seed1", "seed1' is a file, but the game seed1 needs a folder"),
    ],
)
def test_what_no_sweep_wrote_is_refused_and_kept(small_config, tmp_path, played, name, words):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=re.escape(words)):
        run(small_config, tmp_path, "seed=0..1")
    assert file.read_text() == "mine"
    assert sorted(tmp_path.rglob("*")) == before
    assert played == []


def test_what_was_put_into_a_sweep_later_is_refused_and_kept(small_config, tmp_path, played):
    run(small_config, tmp_path, "seed=0")
    for name, text in (("sweep.json", "{}"), *((name, "a,b\n1,2\n") for name in TABLES)):
        path = tmp_path / name
        ours = path.read_text()
        path.write_text(text)
        with pytest.raises(ConfigError, match=f"{name}' would be replaced, but is not"):
            run(small_config, tmp_path, "seed=0..1")
        assert path.read_text() == text
        path.write_text(ours)
    assert played == ["seed0"]
    run(small_config, tmp_path, "seed=0..1")


def test_a_changed_grid_keeps_adds_and_lists(small_config, tmp_path, played):
    run(small_config, tmp_path, "bits=w3a3,w4a4;seed=0..1")
    kept = (tmp_path / "w4a4_seed0" / "result.json").stat().st_mtime_ns
    played.clear()
    table = run(small_config, tmp_path, "bits=w3a3,w2a2;seed=1..2")
    assert played == ["w3a3_seed2", "w2a2_seed1", "w2a2_seed2"]
    assert table["outside"] == ["w3a3_seed0", "w4a4_seed0", "w4a4_seed1"]
    assert "not in this grid: w3a3_seed0, w4a4_seed0" in (tmp_path / "table.md").read_text()
    assert (tmp_path / "w4a4_seed0" / "result.json").stat().st_mtime_ns == kept
    assert [row["seeds"] for row in table["rows"]] == [[1, 2], [1, 2]]


def test_a_longer_schedule_is_played_on_and_other_fields_are_refused(
    small_config, tmp_path, played
):
    run(small_config, tmp_path, "seed=0..1")
    small_config.epochs = 6
    run(small_config, tmp_path, "seed=0..1")
    assert played == ["seed0", "seed1"] * 2
    small_config.game.gamma = 0.5
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match=r"has a game seed1 .*game.gamma was 1.0, is 0.5"):
        run(small_config, tmp_path, "seed=1..2")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_diverged_game_is_noted_and_the_others_are_played(small_config, tmp_path, played, capfd):
    played.fail = {"w3a3_seed1": DivergedError("the game diverged: l_g is nan at step 7.")}
    table = run(small_config, tmp_path)
    assert played == NAMES
    assert table["diverged"] == ["w3a3_seed1"]
    assert (table["rows"][0]["games"], table["rows"][0]["diverged"]) == (3, 1)
    assert table["rows"][0]["top1"]["values"] == pytest.approx([0.53, 0.43])
    assert "Diverged: w3a3_seed1" in (tmp_path / "table.md").read_text()
    assert "[2/6] w3a3_seed1: diverged; the game diverged: l_g" in capfd.readouterr().out
    run(small_config, tmp_path)
    assert played == NAMES  # it would diverge again


def test_a_share_of_a_users_images(small_config, tmp_path, played):
    np.savez(tmp_path / "own.npz", x=np.full((3, 8, 8, 3), 100, np.uint8))
    small_config.game.method = "adadfq_plus"
    small_config.samples.images = str(tmp_path / "own.npz")
    run(small_config, tmp_path / "sweep", "samples.images_share=0.0,0.5")
    found = {}
    for name in played:
        samples = json.loads((tmp_path / "sweep" / name / "config.json").read_text())["samples"]
        found[samples["images_share"]] = samples["images_count"], samples["images_digest"]
    assert found[0.0] == (0, None)
    assert found[0.5][0] == 3
    assert len(found[0.5][1]) == 64


def test_nothing_measured_and_one_seed(small_config, tmp_path, played, monkeypatch, capfd):
    names = ("teacher_top1", "calibrated_top1", "top1", "best_top1", "healthiest_top1")
    blind = dict.fromkeys(names)
    monkeypatch.setattr(
        sys.modules[__name__],
        "outcome",
        lambda config, known=outcome: dataclasses.replace(known(config), **blind),
    )
    table = run(small_config, tmp_path, "bits=w3a3")
    assert table["rows"][0]["top1"] == {"values": [], "mean": None, "std": None}
    assert table["rows"][0]["agreement"]["std"] is None
    assert "| not measured | 75.00 |" in (tmp_path / "table.md").read_text()
    assert "w3a3: agreement 75.00%, 3 s" in capfd.readouterr().out


def test_stopped_in_or_between_games(small_config, tmp_path, played):
    played.fail = {"w3a3_seed1": StoppedError("stopped by SIGTERM at step 3.", signal.SIGTERM)}
    with pytest.raises(StoppedError, match="at step 3"):
        run(small_config, tmp_path)
    assert played == NAMES[:2]
    played.fail = {}
    with pytest.raises(StoppedError, match="SIGINT between two games"):
        run(small_config, tmp_path, should_stop=lambda: signal.SIGINT)
    played.clear()
    run(small_config, tmp_path)
    assert played == NAMES[1:]


@pytest.mark.parametrize("lock", [".claim", ".lock"])
def test_a_game_that_another_process_plays_is_passed_over(
    small_config, tmp_path, played, monkeypatch, lock
):
    """It is waited for, and taken when it is free."""
    monkeypatch.setattr(sweep, "_SECONDS_BETWEEN_LOOKS", 0.01)
    (tmp_path / "seed0").mkdir()
    hold = (
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "seed0" / lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout.readline() == "held\n"
        looks = []

        def should_stop():
            looks.append(list(played))
            if len(looks) == 10:
                owner.kill()
                owner.wait()

        run(small_config, tmp_path, "seed=0..1", should_stop=should_stop)
    assert looks[8] == ["seed1"]
    assert played == ["seed1", "seed0"]


# ---- The command line ---------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path):
    """Returns the flags of a sweep of real games of 60 steps, in the folder `sweep`."""
    save_teacher(TEACHER, tmp_path / "teacher.safetensors")
    (tmp_path / "config.py").write_text(
        "from tests.conftest import make_small_config\n"
        "def get_config():\n"
        "    config = make_small_config()\n"
        "    config.epochs, config.checkpoint.every_steps = 20, 20\n"
        "    config.evaluation.every_epochs = 20\n"
        f"    config.teacher.path = {str(tmp_path / 'teacher.safetensors')!r}\n"
        "    return config\n"
    )
    return [
        "sweep",
        f"--config={tmp_path / 'config.py'}",
        f"--workdir={tmp_path / 'sweep'}",
        "--cache=",  # that of the environment
    ]


def start(argv):
    return subprocess.Popen(
        [sys.executable, "-m", "adadfq_jax", *argv],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_games(folder, count, process):
    """Waits until so many games have a checkpoint."""
    deadline = time.monotonic() + 120
    while len({path.parts[-4] for path in folder.glob("*/checkpoints/[0-9]*/*success*")}) < count:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_finished(folder, names):
    """Each game is complete, and none of its steps was logged twice."""
    for name in names:
        assert json.loads((folder / name / "result.json").read_text())["steps"] == 60
        lines = [json.loads(x) for x in (folder / name / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "l_g" in line] == list(range(1, 61))
    table = json.loads((folder / "table.json").read_text())
    assert [row["games"] for row in table["rows"]] == [len(names)]
    assert not list(folder.glob(".*partial"))


def finished_games(output):
    return sorted(line.split()[1] for line in output.splitlines() if line.startswith("["))


@pytest.mark.kills
def test_two_processes_share_a_grid_and_one_is_killed(command, tmp_path):
    folder = tmp_path / "sweep"
    processes = [start([*command, "--grid=seed=0..2"]) for _ in range(2)]
    wait_for_games(folder, 2, processes[0])
    processes[0].kill()
    left, _ = processes[1].communicate(timeout=240)
    lost, _ = processes[0].communicate()
    assert processes[1].returncode == 0, left
    check_finished(folder, ["seed0", "seed1", "seed2"])
    assert finished_games(lost + left) == ["seed0:", "seed1:", "seed2:"]
    assert "table.md" in left


@pytest.mark.parametrize(
    "again", ["in this process", pytest.param("by jobs", marks=pytest.mark.kills)]
)
def test_jobs_are_stopped_and_started_again(command, tmp_path, capfd, monkeypatch, again):
    folder = tmp_path / "sweep"
    argv = [*command, "--grid=seed=0..1"]
    process = start([*argv, "--jobs=2"])
    wait_for_games(folder, 2, process)
    process.send_signal(signal.SIGTERM)
    stopped, _ = process.communicate(timeout=120)
    assert process.returncode == 75, stopped
    assert "adadfq sweep: stopped by SIGTERM; run the same command" in stopped
    if again == "by jobs":
        process = start([*argv, "--jobs=2"])
        output, _ = process.communicate(timeout=240)
        code = process.returncode
    else:
        monkeypatch.chdir(ROOT)
        code = main.run(argv)
        output = "".join(capfd.readouterr())
    assert code == 0, output
    check_finished(folder, ["seed0", "seed1"])
    assert finished_games(stopped + output) == ["seed0:", "seed1:"]
    assert output.count("| runs |") == 1  # one table


def test_the_jobs_have_ended_before_the_games(small_config, tmp_path):
    games = sweep.Sweep(plan(small_config, "seed=0..1"), tmp_path, TEACHER)
    for code, error in ((1, ConfigError), (75, StorageError)):
        with pytest.raises(error, match=rf"2 of 2 games .* \(exit codes {code}, {code}\)"):
            games.play_in_processes(["sh", "-c", f"exit {code}"], [{}, {}], lambda: None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--grid="], "--grid=GRID is missing: fields and their values, 'FIELD=VALUE"),
        (["--grid=seed"], "the grid has an entry 'seed'"),
        ([], "--grid=GRID is missing: fields and their values, 'FIELD=VALUE"),
        (["--grid=sed=0"], "unknown field 'sed': did you mean seed"),
        (["--grid=seed=0,0"], "value 0 twice"),
        (["--grid=seed=3..1"], "'3..1'"),
        (["--grid=seed=0", "--jobs=-1"], "jobs"),
        (["--grid=seed=0", "--workdir={folder}/file"], "is a file"),
        (["--grid=seed=0", "--workdir={folder}/file/sweep"], "is a file"),
        (["--grid=seed=0", "--workdir={folder}/single"], "holds a single run"),
        (["--grid=seed=0", "--workdir="], "--workdir=DIR is missing"),
        (["--grid=seed=0", "--config.teacher.path=missing.th"], "no teacher file"),
        (["--grid=teacher.path=missing.th"], "no teacher file"),
    ],
)
def test_bad_input_is_one_sentence(command, tmp_path, sentence, monkeypatch, argv, words):
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "config.json").write_text(to_json(make_small_config()))
    before = sorted(tmp_path.rglob("*"))
    assert words in sentence([*command, *(word.format(folder=tmp_path) for word in argv)])
    assert sorted(tmp_path.rglob("*")) == before


def test_the_exit_code_tells_of_a_diverged_game(command, tmp_path, played, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    played.fail = {"seed1": DivergedError("it diverged.")}
    assert main.run([*command, "--grid=seed=0..2"]) == 3
    out, err = capfd.readouterr()
    assert "| runs | teacher |" in out
    assert "1 of 3 runs diverged: seed1; the others are in the table." in err


@pytest.mark.parametrize(("argv", "bars"), [([], True), ([verbs.JOB], False)])
def test_jobs_draw_no_bars_over_each_other(tmp_path, monkeypatch, argv, bars):
    shown = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        sweep.Sweep, "play", lambda self, stop, show_progress: shown.append(show_progress)
    )
    config = make_small_config()
    save_teacher(TEACHER, tmp_path / "teacher.safetensors")
    config.teacher.path = str(tmp_path / "teacher.safetensors")
    given = types.SimpleNamespace(jobs=1, workdir=tmp_path / "sweep", argv=argv)
    verbs._play_sweep(plan(config, "seed=0"), given)
    assert shown == [bars]


def test_a_run_under_the_name_of_a_game_is_not_taken_over(tmp_path):
    config = make_small_config()
    (tmp_path / "seed0").mkdir()
    (tmp_path / "seed0" / "config.json").write_text(to_json(config))
    with pytest.raises(ConfigError, match=r"seed0' holds a run that no sweep began"):
        sweep.Sweep(plan(config, "seed=0"), tmp_path, TEACHER)
    assert not (tmp_path / "sweep.json").exists()
