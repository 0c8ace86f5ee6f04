"""Measures the parts one after the other within a time, and writes down each at once.

Called again, it goes on: what was measured stays, a run that was cut is resumed, and what failed is
tried again.
"""

import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adadfq_jax.errors import ConfigError, StoppedError, nearest
from adadfq_jax.game.state import Phase
from adadfq_jax.measuring.budget import seconds_needed
from adadfq_jax.measuring.facts import SOURCE
from adadfq_jax.measuring.parts import Kind, Part, parts
from adadfq_jax.storage.files import make_folder, on_a_disk, refuse_foreign, write_whole
from adadfq_jax.storage.ownership import own
from adadfq_jax.training.metric_log import read_log
from adadfq_jax.training.result import read_result
from adadfq_jax.training.workdir import read_json

MEASURED = "measured.json"

# By platform as a user says it, JAX's names: the CPU besides, since JAX keeps arrays there.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}

_DIVERGED = 3  # exit code
_TESTS_FAILED = 1  # pytest's exit code
_SECONDS_TO_END = 15.0  # of a process that is told to: to write a checkpoint
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_LINES = 30.0
_KEPT_OUTPUT, _SHOWN_LINES = 20_000, 12  # characters, and lines of what failed

# Statuses with which a part is measured; the others are tried again.
_SETTLED = ("done", "diverged")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
      code: its exit code.
      out, said: what it wrote to stdout and to stderr.
      seconds: how long it ran.
      cut: whether it was told to end.
    """

    code: int
    out: str
    said: str
    seconds: float
    cut: bool = False


# Runs the words of a command after the interpreter, with variables, for some seconds at most; what
# it says goes to two files, whose path without suffix is given.
Runner = Callable[[Sequence[str], Mapping[str, str], Path, float], Ended]


def measure(
    output: str | Path,
    *,
    workdir: str | Path,
    minutes: int | None = None,
    teacher: str | Path | None = None,
    images: str | Path | None = None,
    platform: str | None = None,
    wanted: Sequence[str] = (),
    rehearse: bool = False,
    dry_run: bool = False,
    commit: str | None = None,
    should_stop: Callable[[], int | None] = lambda: None,
) -> dict[str, Any]:
    """Measures what this machine does.

    Args:
      output: the folder of the results, which go into one file, `MEASURED`.
      workdir: the folder of the runs' own folders and of what the processes say.
      minutes: time for all of it; a part that would take longer is left out. None for any time, 0
        to measure nothing and read what there is.
      teacher: a file of `adadfq convert`, of which runs are measured; None for no runs.
      images: evaluation images of the runs, a .npz file or a folder of class folders.
      platform: a name of `PLATFORMS` that JAX must find here; None for what it finds.
      wanted: names of the parts to measure; none for all.
      rehearse: whether to measure with small networks for a few steps.
      dry_run: whether to tell what would be measured, and measure nothing.
      commit: of the source, where git does not tell it.
      should_stop: returns a signal's number once the measurement has to end, else None.

    Returns:
      What the file holds: `machine`, as `facts.facts` returns it; `rehearsal`; and `parts`, by name
      a dict with `title`, `kind`, `command`, `commit` and `status`: done, diverged, failed, cut, or
      left out, with the reason in `why`. What was measured has `seconds` and its `result`, a run
      `steps`, `steps_per_second` and `evaluations` too; what was not done, its `code` and `output`.

    Raises:
      ConfigError: an argument cannot be used, the folder holds the measurements of another machine,
        or JAX does not find the platform.
      WorkdirInUseError: another process measures there.
      StoppedError: `should_stop` returned a signal; what was measured is written.
    """
    began = time.monotonic()
    output, workdir = (on_a_disk(path).absolute() for path in (output, workdir))
    if minutes == 0:
        record = _read(output / MEASURED)
        if record is None:
            raise ConfigError(f"nothing is measured in {str(output)!r}, which --minutes=0 reads.")
        return record
    given = {
        "teacher": _file(teacher, "--teacher", ".safetensors"),
        "images": _file(images, "--images", ".npz", folder=True),
    }
    if images is not None and teacher is None:
        raise ConfigError("--images are of runs, which need a teacher: --teacher=FILE.")
    if platform is not None and platform not in PLATFORMS:
        raise ConfigError(f"unknown platform {platform!r}: {nearest(platform, PLATFORMS)}")
    make_folder(workdir)
    environment = {} if platform is None else {"JAX_PLATFORMS": PLATFORMS[platform]}

    def run(words, variables, said, seconds):
        return run_process(words, environment | dict(variables), said, seconds, should_stop)

    # Of two sessions at a time each would slow the other, and write over what it measured.
    with contextlib.closing(own(workdir)):
        machine = _facts(run, workdir, platform)
        machine["commit"] = machine["commit"] or commit
        record = _read(output / MEASURED)
        _check_same(record, machine, rehearse, output)
        session = Session(
            parts=parts(machine, workdir, **given, rehearse=rehearse),
            record={"parts": {}} | (record or {}) | {"machine": machine, "rehearsal": rehearse},
            path=output / MEASURED,
            workdir=workdir,
            deadline=None if minutes is None else began + 60 * minutes,
            run=run,
            should_stop=should_stop,
        )
        session.choose(wanted)
        if teacher or images:
            _check_given(run, workdir, session.wanted())
        if dry_run:
            session.tell_plan()
        else:
            make_folder(output)
            session.measure()
    return session.record


@dataclasses.dataclass
class Session:
    """The parts of a machine, and what was measured of them.

    Attributes:
      parts: all of them, in their order.
      record: what `MEASURED` holds.
      path: that file.
      workdir: where processes leave what they say.
      deadline: when all must have ended, by `clock`; None for no such time.
      run: runs a part's process.
      should_stop: as in `measure`.
      clock: seconds.
      say: tells a person a line.
    """

    parts: Sequence[Part]
    record: dict[str, Any]
    path: Path
    workdir: Path
    deadline: float | None
    run: Runner
    should_stop: Callable[[], int | None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)

    def __post_init__(self):
        """Wants all parts."""
        self._wanted = {part.name for part in self.parts}

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """What was measured, by the name of the part."""
        return self.record["parts"]

    def choose(self, names: Sequence[str]) -> None:
        """Wants some parts alone; all, where no name is given.

        Raises:
          ConfigError: there is no part of such a name.
        """
        for name in names:
            if name not in self._wanted:
                raise ConfigError(f"there is no part {name!r}: {nearest(name, self._wanted)}")
        self._wanted = set(names) or self._wanted

    def wanted(self) -> list[Part]:
        """Returns the parts that are wanted and not settled."""
        return [
            part for part in self.parts if part.name in self._wanted and not self._is_settled(part)
        ]

    def measure(self) -> None:
        """Measures each part that is wanted, that is not settled and for which there is time.

        Raises:
          StoppedError: as `measure`.
        """
        for part in self.parts:
            if self._is_settled(part):
                continue
            needed, left = self._needed(part), self._left()
            if why := self._reason_against(part, needed, left, "were left"):
                self._leave_out(part, why)
                continue
            time_left = "" if left is None else f", {_minutes(left)} left"
            self.say(f"{part.name}: {part.title} (about {_minutes(needed)}{time_left})")
            ended = self.run(
                self._words(part),
                part.environment,
                self.workdir / part.name,
                float("inf") if left is None else left,
            )
            self._note(part, ended)
            if number := self.should_stop():
                raise StoppedError(
                    f"stopped by {signal.Signals(number).name}; what was measured is in "
                    f"{self.path}; run the same command to go on.",
                    number,
                )

    def tell_plan(self) -> None:
        """Tells what `measure` would do if all estimates were right."""
        left = self._left()
        for part in self.parts:
            if self._is_settled(part):
                self.say(f"{part.name}: {self.entries[part.name]['status']}")
                continue
            needed = self._needed(part)
            if why := self._reason_against(part, needed, left, "would be left"):
                self.say(f"{part.name}: {part.title}: not measured, {why}")
                continue
            self.say(f"{part.name}: {part.title}, about {_minutes(needed)}: {part.command}")
            left = None if left is None else left - needed

    def _is_settled(self, part: Part) -> bool:
        return self.entries.get(part.name, {}).get("status") in _SETTLED

    def _reason_against(self, part: Part, needed: float, left: float | None, words: str) -> str:
        """Returns why a part is not measured, or nothing; `words` follow the time left."""
        if part.missing:
            return part.missing
        if part.name not in self._wanted:
            return "not wanted"
        if left is not None and needed > left:
            return f"needs about {_minutes(needed)}, {_minutes(left)} {words}"
        return ""

    def _needed(self, part: Part) -> float:
        platform = self.record["machine"]["platform"]
        return seconds_needed(part, self.parts, self.entries, platform)

    def _left(self) -> float | None:
        if self.deadline is None:
            return None
        return max(self.deadline - self.clock() - _SECONDS_TO_END, 0.0)

    def _leave_out(self, part: Part, why: str) -> None:
        # What an earlier call has begun, or seen to fail, says more than that.
        if self.entries.get(part.name, {}).get("status") in (None, "left out"):
            self._write(part, {"status": "left out", "why": why})
        self.say(f"{part.name}: {part.title}: not measured, {why}")

    def _words(self, part: Part) -> tuple[str, ...]:
        if part.kind is not Kind.TESTS:
            return part.words
        found = self._outcomes(part)
        found.unlink(missing_ok=True)  # of an earlier call
        return (*part.words, f"--junitxml={found}")

    def _outcomes(self, part: Part) -> Path:
        return self.workdir / f"{part.name}.xml"

    def _note(self, part: Part, ended: Ended) -> None:
        entry = {"status": _status(part, ended), "seconds": ended.seconds}
        if part.kind is Kind.RUN:
            entry |= _of_run(self.workdir / part.name)
        elif part.kind is Kind.TESTS and ended.code in (0, _TESTS_FAILED) and not ended.cut:
            entry["result"] = outcomes(self._outcomes(part).read_text())
        elif part.kind in (Kind.SPEED, Kind.FORECAST) and entry["status"] == "done":
            entry["result"] = json.loads(ended.out.splitlines()[-1])
        if entry["status"] != "done":
            said = f"{ended.out}\n{ended.said}".strip()
            entry |= {"code": ended.code, "output": said[-_KEPT_OUTPUT:]}
            if entry["status"] == "failed":
                self.say("\n".join(f"  {line}" for line in said.splitlines()[-_SHOWN_LINES:]))
        self._write(part, entry)
        self.say(f"{part.name}: {entry['status']} after {ended.seconds:.0f} s")

    def _write(self, part: Part, entry: dict[str, Any]) -> None:
        about = {
            "title": part.title,
            "kind": part.kind.value,
            "command": part.command,
            "commit": self.record["machine"]["commit"],
        }
        self.entries[part.name] = about | entry
        order = {part.name: index for index, part in enumerate(self.parts)}
        self.record["parts"] = dict(
            sorted(self.entries.items(), key=lambda item: order.get(item[0], len(order)))
        )
        write_whole(self.path, (json.dumps(self.record, indent=1) + "\n").encode())


def run_process(
    words: Sequence[str],
    variables: Mapping[str, str],
    said: Path,
    seconds: float,
    should_stop: Callable[[], int | None],
) -> Ended:
    """Runs a process to its end, or tells it to end, and kills it if it does not.

    Args:
      words: its command, after the interpreter.
      variables: environment variables besides this process's.
      said: path, without suffix, of the files for what it says: .out for stdout, .err for stderr.
      seconds: after which it is told to end.
      should_stop: returns the number of a signal with which it is told to end, else None.
    """
    began, told, shown = time.monotonic(), None, 1
    files = [said.with_suffix(suffix) for suffix in (".out", ".err")]
    with open(files[0], "wb") as out, open(files[1], "wb") as err:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=SOURCE,
            env=os.environ | dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            process_group=0,  # so that Ctrl-C reaches it once, through this process
        )
        try:
            while process.poll() is None:
                now = time.monotonic()
                stop = should_stop() or (signal.SIGTERM if now - began > seconds else None)
                if stop and told is None:
                    told = now
                    process.send_signal(stop)
                elif told is not None and now - told > _SECONDS_TO_END:
                    process.kill()
                if now - began > shown * _SECONDS_BETWEEN_LINES:
                    shown += 1
                    last = _last_line(files[1].read_text(errors="replace"))
                    print(f"  {_minutes(now - began)}  {last}".rstrip(), file=sys.stderr)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            process.kill()  # does nothing to a process that has ended
            process.wait()
    return Ended(
        process.returncode,
        *(path.read_text(errors="replace") for path in files),
        time.monotonic() - began,
        cut=told is not None and process.returncode != 0,
    )


def outcomes(text: str) -> list[dict[str, Any]]:
    """Returns the tests of a JUnit report: `name`, `outcome`, `seconds` and `message` of each."""
    found = []
    for case in xml.etree.ElementTree.fromstring(text).iter("testcase"):
        worse = [child for child in case if child.tag in ("failure", "error", "skipped")]
        found.append(
            {
                "name": case.get("name"),
                "outcome": worse[0].tag if worse else "passed",
                "seconds": float(case.get("time", 0)),
                "message": worse[0].get("message", "").split("\n")[0] if worse else "",
            }
        )
    return found


def _status(part: Part, ended: Ended) -> str:
    if ended.cut:
        return "cut"
    if ended.code == 0:
        return "done"
    return "diverged" if part.kind is Kind.RUN and ended.code == _DIVERGED else "failed"


def _of_run(folder: Path) -> dict[str, Any]:
    """Returns how far a run is and how fast, its evaluations, and its result where it has ended."""
    log = read_log(folder)
    result = read_result(folder)
    rates = [line["steps_per_second"] for line in log if line.get("phase") == Phase.PLAY.value]
    shown = ("step", "top1", "agreement", "health", "held_out_l_bns")
    return {
        "steps": max((line["step"] for line in log), default=0),
        # Median, since the first line of a phase has the time that its program took to compile.
        "steps_per_second": statistics.median(rates) if rates else None,
        "evaluations": [
            {name: line.get(name) for name in shown} for line in log if line.get("evaluation")
        ],
        "result": None if result is None else dataclasses.asdict(result),
    }


def _facts(run: Runner, workdir: Path, platform: str | None) -> dict[str, Any]:
    ended = run(("-m", "adadfq_jax.measuring.facts"), {}, workdir / "facts", float("inf"))
    found = {} if ended.code else json.loads(ended.out.splitlines()[-1])
    # Where a driver does not start, JAX says so and takes the CPU.
    if ended.code or (platform is not None and found["platform"] != platform):
        said = _last_line(ended.said) or "it said nothing"
        raise ConfigError(
            f"JAX finds no {platform or 'devices'} on this machine: {said.rstrip('.')}. "
            "--platform=cpu measures the processor."
        )
    return found


def _check_given(run: Runner, workdir: Path, planned: Sequence[Part]) -> None:
    """Raises ConfigError where runs would refuse their teacher or their images.

    They come late in a measurement, and each would fail by itself.
    """
    runs = [part for part in planned if part.kind is Kind.RUN and not part.missing]
    if not runs:
        return
    ended = run((*runs[0].words, "--dry-run"), {}, workdir / "given", float("inf"))
    if ended.code and not ended.cut:
        said = _last_line(ended.said) or "it ended without a word"
        raise ConfigError(f"a run of this teacher and these images fails: {said}")


def _read(path: Path) -> dict[str, Any] | None:
    record = read_json(path)
    if record is not None and not {"machine", "rehearsal", "parts"} <= set(record):
        refuse_foreign(path, "the measurements of a machine")
    return record


def _check_same(
    record: dict[str, Any] | None, machine: Mapping[str, Any], rehearse: bool, output: Path
) -> None:
    """Raises ConfigError where a folder holds what other devices did, or a rehearsal."""
    if record is None:
        return
    there, here = (
        f"{found['devices']} x {found['kind']}{', a rehearsal' if rehearsed else ''}"
        for found, rehearsed in (
            (record["machine"], record["rehearsal"]),
            (machine, rehearse),
        )
    )
    if there != here:
        raise ConfigError(
            f"{str(output)!r} holds the measurements of {there}, and this is {here}; choose "
            "another --output."
        )


def _file(path: str | Path | None, flag: str, suffix: str, folder: bool = False) -> Path | None:
    """Returns the absolute path of a file that is given; None where none is."""
    if path is None:
        return None
    found = on_a_disk(path).absolute()
    if folder and found.is_dir():
        return found
    if found.suffix != suffix or not found.is_file():
        what = f"a {suffix} file{' or a folder of class folders' if folder else ''}"
        raise ConfigError(f"{flag}={path}: it must be {what} that is there.")
    return found


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
