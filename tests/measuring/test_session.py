"""A session with processes and a clock of ours: what it measures, leaves out, keeps and resumes."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adadfq_jax.errors import ConfigError, StoppedError
from adadfq_jax.measuring import facts, session
from adadfq_jax.measuring.parts import Kind, Part, parts, topology_of
from adadfq_jax.measuring.session import Ended, Session, outcomes, run_process
from adadfq_jax.measuring.tables import tables
from adadfq_jax.storage.ownership import own
from tests import ROOT
from tests.conftest import make_result

MACHINE = {
    "platform": "gpu",
    "kind": "Card 9000",
    "devices": 1,
    "memory": 8e9,
    "driver": None,
    "processor": "a processor",
    "cores": 16,
    "versions": {"python": "3.12.3", "jax": "0.11.2", "torch": "2.11.0+cu130"},
    "commit": "abc1234",
    "date": "2026-11-29",
}
TIMES = {"median_s": 0.002, "p10_s": 0.001, "p90_s": 0.003}
SPEED = {
    "load": 17.0,
    "cores": 16,
    "phases": {"play": TIMES},
    "compile_s": 33.0,
    "flops_per_step": 13.1e9,
    "flops_per_s": 6e12,
    "matmul_flops_per_s": 3e13,
    "peak_bytes": 92.6e6,
    "torch": {"phases": {"play": TIMES}, "lean": {"phases": {"play": TIMES}}},
    "ratio": 1.5,
    "ratio_same_algorithm": 1.25,
    "parts": {
        "generator forward": 1e-3,
        "student backward, to images": 2e-3,
        "student backward, to weights": 3e-3,
        "optimizers": 4e-3,
    },
}
FORECAST = {"topology": "h200", "needed": 90e6, "flops": 13e9, "seconds": 0.0018}
FORECAST = {"slices": [FORECAST | {"kernels": {"convolutions": 140, "copies": 40}}]}
JUNIT = """<testsuites><testsuite><testcase name="one" time="1.5"/><testcase name="two" time="2">
<failure message="it | differs&#10;and more"/></testcase></testsuite></testsuites>"""


class Machine:
    """Runs no process: what each part leaves is given, and a clock is moved on by its seconds."""

    def __init__(self, path: Path):
        self.path, self.now, self.ran, self.said = path, 0.0, [], []
        self.takes = {}  # seconds by part; 10 where nothing is said
        self.codes = {}  # exit codes by part
        self.stop = None
        self.work = path / "work"
        self.work.mkdir()
        self.parts = parts(MACHINE, self.work, teacher=path / "t.safetensors")

    def run(self, words, variables, said, limit):
        part = next(part for part in self.parts if part.name == said.name)
        seconds = self.takes.get(part.name, 10.0)
        self.ran.append(part.name)
        self.now += min(seconds, limit)
        if seconds > limit:
            self.log(part, steps=400)
            return Ended(75, "", "stopped", limit, cut=True)
        code = self.codes.get(part.name, 0)
        out = {Kind.SPEED: SPEED, Kind.FORECAST: FORECAST}.get(part.kind, {})
        if part.kind is Kind.TESTS:
            assert f"--junitxml={self.work / part.name}.xml" in words
            (self.work / f"{part.name}.xml").write_text(JUNIT)
        if part.kind is Kind.RUN:
            self.log(part, part.steps if code == 0 else 600)
            if code == 0:
                fields = {"top1": 0.88, "best_top1": 0.89, "healthiest_top1": 0.87, "steps": 80000}
                result = make_result(**fields)
                (self.work / part.name / "result.json").write_text(json.dumps(vars(result)))
        return Ended(code, f"a line\n{json.dumps(out)}\n", "words", seconds)

    def log(self, part, steps):
        if part.kind is not Kind.RUN:
            return
        folder = self.work / part.name
        folder.mkdir(exist_ok=True)
        lines = [{"step": 1, "phase": "calibrate", "steps_per_second": 1.0}]
        lines += [{"step": steps, "phase": "play", "steps_per_second": 500.0}]
        measured = {"top1": 0.85, "agreement": 0.7, "health": 0.5, "held_out_l_bns": 0.4}
        lines += [{"step": steps, "evaluation": True} | measured]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def session(self, minutes=None, wanted=()):
        path = self.path / session.MEASURED
        record = json.loads(path.read_text()) if path.exists() else {}
        made = Session(
            parts=self.parts,
            record={"machine": MACHINE, "rehearsal": False, "parts": {}} | record,
            path=path,
            workdir=self.work,
            deadline=None if minutes is None else self.now + 60 * minutes,
            run=self.run,
            should_stop=lambda: self.stop,
            clock=lambda: self.now,
            say=self.said.append,
        )
        made.choose(wanted)
        return made

    def measure(self, minutes=None, wanted=()):
        self.ran, self.said = [], []
        self.session(minutes, wanted).measure()
        return self.entries()

    def entries(self):
        return json.loads((self.path / session.MEASURED).read_text())["parts"]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


ALL = (
    *("parity", "parity_unrounded", "same", "speed_16", "speed_64", "speed_224"),
    *("w3a3", "w3a3_plus", "w4a4", "w5a5", "forecast"),
)


def test_with_time_all_is_measured_in_order_and_once(machine):
    entries = machine.measure()
    *measured, forecast = ALL
    assert machine.ran == measured
    assert list(entries) == list(ALL)
    assert {entry["status"] for name, entry in entries.items() if name != forecast} == {"done"}
    assert entries[forecast]["why"] == "`adadfq precompile` knows no topology of Card 9000"
    assert entries["w3a3"]["steps"] == 80_000
    assert entries["w3a3"]["steps_per_second"] == 500
    assert entries["w3a3"]["result"]["top1"] == 0.88
    assert entries["parity"]["result"][1] == {
        **{"name": "two", "outcome": "failure", "seconds": 2.0, "message": "it | differs"},
    }
    machine.measure()
    assert machine.ran == []


def test_what_does_not_fit_is_left_out_and_what_fits_after_it_is_not(machine):
    """500 steps a second: 80,000 take 160 s, and the plus's 8,000 half a minute."""
    machine.takes = {"w3a3": 200.0, "w4a4": 200.0}
    entries = machine.measure(minutes=7)
    # A seventh of the time that was guessed, so that w3a3 needs 3 min; then too little is left.
    assert [name for name, entry in entries.items() if entry["status"] == "left out"] == [
        "w4a4",
        "w5a5",
        "forecast",
    ]
    assert entries["w4a4"]["why"] == "needs about 2.9 min, 2.2 min were left"
    assert machine.now <= 7 * 60
    machine.measure(minutes=7)
    assert machine.ran == ["w4a4", "w5a5"]


def test_all_ends_in_time_and_a_run_that_was_cut_goes_on(machine):
    machine.takes = {"w3a3": 10_000.0}
    entries = machine.measure(minutes=5)
    assert machine.now <= 5 * 60
    assert entries["w3a3"]["status"] == "cut"
    assert (entries["w3a3"]["steps"], entries["w3a3"]["result"]) == (400, None)
    machine.takes = {}
    assert machine.measure(minutes=5)["w3a3"]["status"] == "done"
    assert machine.ran[0] == "w3a3"


def test_what_failed_says_why_and_is_tried_again_and_what_diverged_is_not(machine):
    machine.codes = {"speed_64": 2, "w3a3": 3, "parity_unrounded": 1, "same": 2}
    entries = machine.measure()
    statuses = {name: entries[name]["status"] for name in machine.codes}
    assert statuses == {
        **{
            "speed_64": "failed",
            "w3a3": "diverged",
            "parity_unrounded": "failed",
            "same": "failed",
        }
    }
    assert entries["speed_64"]["output"].endswith("words")
    assert entries["speed_64"]["code"] == 2
    assert [test["outcome"] for test in entries["parity_unrounded"]["result"]] == [
        "passed",
        "failure",
    ]
    assert "result" not in entries["same"]  # which is pytest's own failure
    assert entries["w3a3"]["steps"] == 600
    machine.codes = {}
    machine.measure()
    assert machine.ran == ["parity_unrounded", "same", "speed_64"]


def test_parts_by_name(machine):
    entries = machine.measure(wanted=["speed_64", "w4a4"])
    assert machine.ran == ["speed_64", "w4a4"]
    assert entries["w3a3"]["why"] == "not wanted"
    assert machine.measure(minutes=1)["w3a3"]["why"].startswith("needs about")
    with pytest.raises(ConfigError, match="no part 'speed_65': did you mean speed_16 or speed_64"):
        machine.session(wanted=["speed_65"])


def test_a_signal_ends_it_after_what_was_measured_is_written(machine):
    machine.stop = signal.SIGTERM
    with pytest.raises(StoppedError, match="stopped by SIGTERM; what was measured is in"):
        machine.measure()
    assert list(machine.entries()) == ["parity"]


def test_the_plan_is_told_and_nothing_is_run(machine):
    machine.session(minutes=9).tell_plan()
    assert machine.ran == []
    assert not (machine.path / session.MEASURED).exists()
    told = dict(line.split(": ", 1) for line in machine.said)
    assert told["speed_16"].startswith("ResNet-20, 32 pixels, batch 16, about 1.5 min: XLA_PYTHON")
    assert told["w3a3"].endswith("not measured, needs about 7.3 min, 0.2 min would be left")


def test_without_a_teacher_runs_are_not_measured(tmp_path):
    missing = {part.name: part.missing for part in parts(MACHINE, tmp_path)}
    assert missing["w3a3"] == missing["w3a3_plus"] == "needs a teacher: --teacher=FILE"
    assert missing["speed_16"] == missing["parity"] == ""


@pytest.mark.parametrize(
    ("platform", "torch", "against"),
    [
        ("cpu", "2.13.0+cpu", True),
        ("gpu", "2.11.0+cu130", True),
        ("gpu", "2.13.0+cpu", False),
        ("tpu", "2.13.0", False),
        ("cpu", None, False),
    ],
)
def test_pytorch_takes_part_where_it_can(tmp_path, platform, torch, against):
    versions = {"torch": torch} if torch else {}
    found = parts(MACHINE | {"platform": platform, "versions": versions}, tmp_path)
    speeds = [part for part in found if part.kind is Kind.SPEED]
    assert len(speeds) == 3
    assert all(("--against=torch" in part.words) == against for part in speeds)


def test_the_tests_of_a_part_are_there_and_not_slow():
    """A test that is deselected would end a part on the day on which a GPU is there."""
    found = [*parts(MACHINE, Path("work")), *parts(MACHINE, Path("work"), rehearse=True)]
    words = {word for part in found if part.kind is Kind.TESTS for word in part.words}
    tests = sorted(word for word in words if word.startswith("tests/"))
    collect = ["-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *tests]
    done = subprocess.run([sys.executable, *collect], cwd=ROOT, capture_output=True, text=True)
    for test in tests:
        assert f"\n{test}" in f"\n{done.stdout}", done.stdout + done.stderr


def test_commands_are_those_of_a_person(machine):
    commands = {part.name: part.command for part in machine.parts}
    assert commands["w3a3"] == (
        "adadfq quantize --config=teacher:w3a3 --config.teacher.path=t.safetensors "
        "--config.evaluation.every_epochs=20 --workdir=w3a3"
    )
    assert commands["same"].startswith("XLA_FLAGS=--xla_gpu_deterministic_ops=true pytest -q ")


KNOWN = ("v5e:2x2", "v5e:4x4", "v4:2x2x1", "l4", "h200", "h200:1x8", "a100", "rtx4090")


@pytest.mark.parametrize(
    ("kind", "topology"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("TPU v5 lite", "v5e:2x2"),
        ("TPU v4", "v4:2x2x1"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("cpu", None),
    ],
)
def test_the_topology_of_a_device(kind, topology):
    assert topology_of(kind, KNOWN) == topology


def test_tables_of_what_was_measured(machine):
    machine.codes = {"w4a4": 3, "speed_64": 2}
    kind = "NVIDIA H200"
    *others, forecast = machine.parts
    machine.parts = (*others, Part(forecast.name, Kind.FORECAST, forecast.title, (), seconds=1))
    machine.measure(wanted=[name for name in ALL if name != "w5a5"])
    record = json.loads((machine.path / session.MEASURED).read_text())
    record["machine"]["kind"] = kind
    record["parts"]["w3a3"]["commit"] = "def5678"
    text = tables(record)
    for line in (
        "## 1 x NVIDIA H200",
        "jax 0.11.2, torch 2.11.0+cu130. Commit abc1234 and def5678, 2026-11-29.",
        "| ResNet-20, 32 pixels, batch 16 | 2 ms | 2 ms | 2 ms | 1.50, 1.25 | 6000 | 20% | 33 s |",
        "| ResNet-20, 32 pixels, batch 64 | not measured, failed: words |  |  |  |  |  |  |",
        "The machine was busy (load 17.0): times are too long.",
        "| generator | 1 ms |  |",
        "| student |  | 2 ms to images, 3 ms to weights |",
        "| ResNet-20, batch 16 | h200 | here |",
        "| memory of a step | 90.0 MB | 92.6 MB |",
        "| time of a step | 1.8 ms | 2 ms |",
        "| kernels of a step | 180 |  |",
        "| AdaDFQ, w3a3 | 80,000 | 25.00 | 88.00 | 89.00 | 87.00 | 500.0 | 0.1 min |",
        "| AdaDFQ, w4a4 | 600 |  | **diverged** | 85.00 |  | 500.0 |  |",
        "| AdaDFQ, w5a5 |  |  | not measured, not wanted |  |  |  |  |",
        "| 600 | 85.00 | 70.00% | 0.40 |",
        "| bit for bit | `two` | failure: it ¦ differs | 2 s |",
        "adadfq quantize --config=teacher:w3a3 --config.teacher.path=t.safetensors "
        "--config.evaluation.every_epochs=20 --workdir=w3a3",
    ):
        assert line in text, line
    # Every row of a table has as many cells as its heading.
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
    assert len(blocks) == 7
    for heading, *rows in blocks:
        assert {row.count("|") for row in rows} == {heading.count("|")}, heading


def test_tables_of_a_session_that_has_just_begun():
    record = {"machine": MACHINE | {"commit": None, "memory": None}, "rehearsal": True, "parts": {}}
    text = tables(record)
    assert text.startswith("## 1 x Card 9000\n\n1 x Card 9000; 16 cores")
    assert "Commit unknown" in text
    assert text.endswith("**A rehearsal**: small networks, a few steps.\n")


# ---- Processes, and what is given --------------------------------------------------------------


def test_a_process_that_ends(tmp_path):
    program = "import os, sys; print(os.environ['WORD']); print('b', file=sys.stderr); sys.exit(5)"
    ended = run_process(["-c", program], {"WORD": "a"}, tmp_path / "x", 60, lambda: None)
    assert (ended.code, ended.out, ended.said, ended.cut) == (5, "a\n", "b\n", False)
    assert (tmp_path / "x.out").read_text() == "a\n"


def test_a_process_that_takes_long_is_told_of(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(session, "_SECONDS_BETWEEN_LINES", 0.3)
    program = "import sys, time; print('step 7', file=sys.stderr, flush=True); time.sleep(2)"
    run_process(["-c", program], {}, tmp_path / "x", 60, lambda: None)
    assert "  0.0 min  step 7\n" in capfd.readouterr().err


def test_a_process_that_does_not_end_in_time(tmp_path):
    program = "import time; time.sleep(60)"
    ended = run_process(["-c", program], {}, tmp_path / "x", 0.5, lambda: None)
    assert (ended.code, ended.cut) == (-signal.SIGTERM, True)


def said(path, word, number):
    """Returns what asks a process to stop by a signal once it has said a word."""
    return lambda: number if path.exists() and word in path.read_text() else None


def test_a_process_that_ignores_the_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_SECONDS_TO_END", 0.3)
    program = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); "
        "time.sleep(60)"
    )
    stop = said(tmp_path / "x.out", "ready", signal.SIGTERM)
    ended = run_process(["-c", program], {}, tmp_path / "x", 60, stop)
    assert (ended.code, ended.cut) == (-signal.SIGKILL, True)


def test_a_signal_is_handed_on_once(tmp_path):
    program = (
        "import signal, sys, time\n"
        "def told(*_): print('told', flush=True); signal.signal(2, signal.SIG_DFL)\n"
        "signal.signal(2, told)\n"
        "print('ready', flush=True); time.sleep(1.5); sys.exit(75)"
    )

    stop = said(tmp_path / "x.out", "ready", signal.SIGINT)
    ended = run_process(["-c", program], {}, tmp_path / "x", 60, stop)
    assert (ended.code, ended.out, ended.cut) == (75, "ready\ntold\n", True)


def test_outcomes_of_an_error_and_a_skip():
    text = '<s><testcase name="a"><error message="e"/></testcase><testcase name="b"><skipped/>'
    assert [test["outcome"] for test in outcomes(text + "</testcase></s>")] == ["error", "skipped"]


def test_what_cannot_be_used(tmp_path, sentence, monkeypatch):
    monkeypatch.setattr(session, "_facts", lambda *_: dict(MACHINE))
    output = tmp_path / "out"
    (tmp_path / "t.pth").write_text("")
    for flags, wanted in (
        (["--minutes=0"], "nothing is measured in"),
        (["--platform=gpus"], "unknown platform 'gpus': did you mean gpu"),
        (["--teacher=none.safetensors"], "--teacher=none.safetensors: it must be a .safetensors"),
        ([f"--teacher={tmp_path}/t.pth"], "it must be a .safetensors file"),
        ([f"--images={tmp_path}/t.pth"], "a .npz file or a folder of class folders that is there"),
        ([f"--images={tmp_path}"], "--images are of runs, which need a teacher: --teacher=FILE."),
        (["--parts=w3", "--platform=cpu"], "there is no part 'w3': did you mean"),
    ):
        assert wanted in sentence(["measure", f"--output={output}", *flags])
        assert not output.exists()


def test_a_folder_of_others_is_left_alone(tmp_path, sentence, monkeypatch):
    monkeypatch.setattr(session, "_facts", lambda *_: MACHINE | {"kind": "Card 1"})
    file = tmp_path / session.MEASURED
    words = ["measure", f"--output={tmp_path}", "--platform=cpu", "--dry-run"]
    file.write_text("{}")
    assert "is not the measurements of a machine that adadfq wrote" in sentence(words)
    record = {"machine": MACHINE, "rehearsal": False, "parts": {}}
    file.write_text(json.dumps(record))
    said = sentence(words)
    assert "holds the measurements of 1 x Card 9000, and this is 1 x Card 1;" in said
    assert json.loads(file.read_text()) == record


def test_two_sessions_at_a_time(tmp_path, sentence):
    with contextlib.closing(own(tmp_path)):
        said = sentence(["measure", f"--output={tmp_path}/out", f"--workdir={tmp_path}"])
    assert "in use" in said


def test_a_platform_that_is_not_here(tmp_path, sentence, monkeypatch):
    monkeypatch.setattr(session, "PLATFORMS", {"tpu": "no_such_platform"})
    said = sentence(["measure", f"--output={tmp_path}/out", "--platform=tpu"])
    assert "JAX finds no tpu on this machine: " in said
    assert "--platform=cpu measures the processor." in said


def test_a_driver_that_does_not_start_is_no_cpu(tmp_path, sentence, monkeypatch):
    """JAX then takes the CPU, and says why on stderr alone."""
    ended = Ended(0, json.dumps(MACHINE | {"platform": "cpu"}), "cuInit(0) failed.\n", 1.0)
    monkeypatch.setattr(session, "run_process", lambda *_: ended)
    said = sentence(["measure", f"--output={tmp_path}/out", "--platform=gpu"])
    assert "JAX finds no gpu on this machine: cuInit(0) failed. --platform=cpu" in said


def test_what_runs_would_refuse_is_refused_before_anything_is_measured(
    tmp_path, sentence, monkeypatch
):
    monkeypatch.setattr(session, "_facts", lambda *_: dict(MACHINE))
    teacher, ran = tmp_path / "t.safetensors", []
    teacher.write_text("")

    def run(words, *_):
        ran.append(words)
        return Ended(2, "", "adadfq quantize: this is no teacher.\n", 1.0)

    monkeypatch.setattr(session, "run_process", run)
    for more in ([], ["--rehearse"], ["--dry-run"]):
        flags = [f"--output={tmp_path}/out", f"--teacher={teacher}", f"--images={tmp_path}", *more]
        assert "adadfq quantize: this is no teacher." in sentence(["measure", *flags])
    assert all(words[-1] == "--dry-run" for words in ran)
    assert all(f"--config.teacher.path={teacher}" in words for words in ran)
    assert all(f"--config.data.path={tmp_path}" in words for words in ran)


def test_what_this_machine_is(monkeypatch):
    card = "580.159.03, 143771"
    monkeypatch.setattr(facts, "_said", lambda command: card if "nvidia-smi" in command else None)
    found = facts.facts()
    assert (found["platform"], found["devices"], found["commit"]) == ("cpu", 4, None)
    assert (found["driver"], found["memory"]) == ("580.159.03", 143771 * 2**20)
    assert {"python", "jax", "jaxlib", "torch"} <= set(found["versions"])
    assert found.keys() == MACHINE.keys() | {"runtime"}
    monkeypatch.setattr(facts, "_said", lambda command: None)
    assert facts.facts()["driver"] is None


def test_a_program_that_is_missing_or_fails_says_nothing():
    assert facts._said(("no-such-program",)) is None
    assert facts._said(("false",)) is None
    assert facts._said(("echo", "a word")) == "a word"


def test_python_is_this_one(tmp_path):
    ended = run_process(["-c", "import sys; print(sys.executable)"], {}, tmp_path / "x", 60, int)
    assert ended.out.strip() == sys.executable
