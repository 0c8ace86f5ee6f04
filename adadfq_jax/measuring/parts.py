"""The parts of a measurement, each a command of its own, in the order in which they are wanted.

A part is a process: what it breaks, the others do not feel, and what it measures, its command
measures again.
"""

import dataclasses
import enum
import importlib.util
import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adadfq_jax.benchmarks.precompile import TOPOLOGIES
from adadfq_jax.measuring.facts import SOURCE


class Kind(enum.Enum):
    """What a part measures, and by that how its result is read."""

    TESTS = "tests"  # which of some tests pass
    SPEED = "speed"  # the verb `benchmark`
    RUN = "run"  # the verb `quantize`, which goes on where it was cut
    FORECAST = "forecast"  # the verb `precompile`


@dataclasses.dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
      name: of the part, in flags and files.
      kind: what it measures.
      title: what it measures, for a person.
      words: its command, without the interpreter.
      seconds: a guess of what it takes besides steps of a run, above all to compile.
      steps: steps of a run; 0 where it is none.
      cost: of a run, how many times as long as one of AdaDFQ a step takes.
      environment: variables of its process.
      missing: why it cannot be measured here, a sentence; empty where it can.
    """

    name: str
    kind: Kind
    title: str
    words: tuple[str, ...]
    seconds: float
    steps: int = 0
    cost: float = 1.0
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    missing: str = ""

    @property
    def command(self) -> str:
        """The command as it could be typed; of paths, the last part."""
        words = [word if "/" not in word else _shortened(word) for word in self.words]
        typed = shlex.join(words).replace("-m ", "", 1).replace("adadfq_jax ", "adadfq ", 1)
        return " ".join([*(f"{name}={value}" for name, value in self.environment.items()), typed])


def _shortened(word: str) -> str:
    flag, equals, value = word.partition("=")
    return f"{flag}{equals}{Path(value).name}" if equals else word


# Steps of the whole schedule of the paper, and those of the plus that are enough.
_EPOCHS, _PLUS_EPOCHS, _STEPS_PER_EPOCH = 400, 40, 200
_EVALUATIONS = 20  # of a run; with more of them a fast device would do little else

_PARITY = "tests/game/test_parity.py"
_IN_FLOAT64 = (f"{_PARITY}::test_step_in_float64[lean-None]",)
_IN_FLOAT32 = (f"{_PARITY}::test_step_in_float32",)
_DISPATCHES = ("tests/training/test_quantize.py::test_several_steps_a_dispatch_are_the_same_game",)
_DEVICES = ("tests/game/test_step.py::test_four_devices_play_the_game_of_one[play]",)
_RESUMED = ("tests/training/test_quantize.py::test_stopped_and_resumed_is_uninterrupted",)

# The steps that are timed; in a rehearsal, of a small network.
_TIMED = "--config=cifar10_resnet20:w4a4"
_SMALL = ("--config.teacher.architecture=resnet8_cifar", "--config.teacher.image_size=8")

# Else sums on a GPU may change their order from run to run.
_DETERMINISTIC = {"XLA_FLAGS": "--xla_gpu_deterministic_ops=true"}
# By default a GPU and a TPU round the factors of products of float32.
_UNROUNDED = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
# JAX takes three quarters of a card by default, and PyTorch needs some too.
_SHARED = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}


def parts(
    facts: Mapping[str, Any],
    workdir: Path,
    *,
    teacher: Path | None = None,
    images: Path | None = None,
    rehearse: bool = False,
) -> tuple[Part, ...]:
    """Returns what there is to measure on a machine.

    Args:
      facts: what the machine is, as `facts.facts` returns it.
      workdir: where the folders of runs go.
      teacher: a file of `adadfq convert`; without one, no run is measured.
      images: evaluation images, a .npz file or a folder of class folders; None for none.
      rehearse: whether to measure the same parts with small networks for a few steps; of the
        teacher, runs of a few steps.
    """
    found = [*_tests(facts, rehearse), *_speeds(facts, rehearse)]
    given = _given(teacher, images)
    found += _rehearsed_runs(workdir, given) if rehearse else _runs(workdir, given)
    return (*found, _forecast(facts, rehearse))


def _tests(facts: Mapping[str, Any], rehearse: bool) -> list[Part]:
    missing = ""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("torch") is None:
        missing = "needs pytest and PyTorch"
    elif not (SOURCE / _PARITY).is_file():
        missing = "needs the source folder, which has the tests"
    platform = facts["platform"]

    def part(name, title, tests, environment=None):
        # Of other versions of libraries than ours, a new warning is no failure.
        words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", *tests)
        guess = 40 * len(tests)
        return Part(name, Kind.TESTS, title, words, guess, 0, 1.0, environment or {}, missing)

    # Float64 is slow to compile, and a TPU has none.
    exact = not rehearse and platform != "tpu"
    parity = (*_IN_FLOAT64 * exact, *_IN_FLOAT32, *_DISPATCHES * (not rehearse))
    same = (*_DEVICES * exact, f"{_RESUMED[0]}[4]" if rehearse else _RESUMED[0])
    found = [
        part("parity", "parity with PyTorch", parity),
        part("same", "bit for bit", same, _DETERMINISTIC if platform == "gpu" else {}),
    ]
    if platform != "cpu":
        title = "parity, products not rounded"
        found.insert(1, part("parity_unrounded", title, _IN_FLOAT32, _UNROUNDED))
    return found


def _speeds(facts: Mapping[str, Any], rehearse: bool) -> list[Part]:
    platform = facts["platform"]
    torch = facts["versions"].get("torch", "+none")
    plays = not torch.endswith("+none") and (
        platform == "cpu" or (platform == "gpu" and not torch.endswith("+cpu"))
    )
    against = ("--against=torch",) if plays else ()
    shared = _SHARED if platform == "gpu" else {}

    def part(name, title, words, seconds):
        words = ("-m", "adadfq_jax", "benchmark", *words, *against, "--json")
        return Part(name, Kind.SPEED, title, words, seconds, environment=shared)

    if rehearse:
        words = (_TIMED, *_SMALL, "--steps=1", "--rounds=1")
        return [
            part(name, title, (*words, *more), 60)
            for name, title, more in (
                ("speed_16", "ResNet-8, 8 pixels, batch 16", ()),
                ("speed_64", "ResNet-8, 8 pixels, batch 64", ("--config.batch_size=64",)),
            )
        ]
    large = ("--config=teacher:w4a4", "--config.teacher.architecture=resnet18")
    # On a CPU a step at 224 pixels takes seconds.
    slow = platform == "cpu"
    batch, steps = (8, 1) if slow else (16, 10)
    whole = "--parts=false"
    return [
        part("speed_16", "ResNet-20, 32 pixels, batch 16", (_TIMED, "--steps=20"), 90),
        part(
            "speed_64",
            "ResNet-20, 32 pixels, batch 64",
            (_TIMED, "--config.batch_size=64", f"--steps={3 if slow else 20}", whole),
            60,
        ),
        part(
            "speed_224",
            f"ResNet-18, 224 pixels, batch {batch}",
            (*large, f"--config.batch_size={batch}", f"--steps={steps}", whole),
            120,
        ),
    ]


def _run(name, title, words: Sequence[str], workdir: Path, seconds, steps, **more) -> Part:
    words = ("-m", "adadfq_jax", "quantize", *words, f"--workdir={workdir / name}")
    return Part(name, Kind.RUN, title, words, seconds, steps, **more)


def _given(teacher: Path | None, images: Path | None) -> list[str]:
    """Returns the flags of a run of a teacher that is given; none without one."""
    if teacher is None:
        return []
    given = [f"--config.teacher.path={teacher}"]
    if images is not None:
        source = "folder" if images.is_dir() else "npz"
        given += [f"--config.data.source={source}", f"--config.data.path={images}"]
    return given


def _runs(workdir: Path, given: Sequence[str]) -> list[Part]:
    missing = "" if given else "needs a teacher: --teacher=FILE"

    def run(bits):
        words = (f"--config=teacher:{bits}", *given, _every(_EPOCHS))
        steps = _EPOCHS * _STEPS_PER_EPOCH
        return _run(bits, f"AdaDFQ, {bits}", words, workdir, 120, steps, missing=missing)

    plus = (
        "--config=teacher:w3a3",
        *given,
        "--config.game.method=adadfq_plus",
        f"--config.epochs={_PLUS_EPOCHS}",
        "--config.calibration_epochs=2",
        "--config.warmup_epochs=2",
        _every(_PLUS_EPOCHS),
    )
    steps = _PLUS_EPOCHS * _STEPS_PER_EPOCH
    title = "the plus, w3a3"
    return [
        run("w3a3"),
        _run("w3a3_plus", title, plus, workdir, 150, steps, cost=2.0, missing=missing),
        run("w4a4"),
        run("w5a5"),
    ]


def _every(epochs: int) -> str:
    return f"--config.evaluation.every_epochs={epochs // _EVALUATIONS}"


def _rehearsed_runs(workdir: Path, given: Sequence[str]) -> list[Part]:
    schedule = ("steps_per_epoch=2", "epochs=3", "calibration_epochs=1", "warmup_epochs=1")
    few = [f"--config.{field}" for field in (*schedule, "evaluation.generated_images=16")]

    def run(name, title, *more):
        words = (f"--config={'teacher' if given else 'digits_resnet20'}:w3a3", *given, *few, *more)
        return _run(name, title, words, workdir, 90, steps=6)

    return [
        run("w3a3", "AdaDFQ, w3a3"),
        run("w3a3_plus", "the plus, w3a3", "--config.game.method=adadfq_plus"),
    ]


def _forecast(facts: Mapping[str, Any], rehearse: bool) -> Part:
    topology = topology_of(facts["kind"], TOPOLOGIES)
    words = ("-m", "adadfq_jax", "precompile", _TIMED, *_SMALL * rehearse)
    words += (f"--topology={topology}", "--json")
    return Part(
        "forecast",
        Kind.FORECAST,
        f"the compiler's forecast, ResNet-{8 if rehearse else 20}, batch 16",
        words,
        seconds=90,
        missing="" if topology else f"`adadfq precompile` knows no topology of {facts['kind']}",
    )


def topology_of(kind: str, known: Sequence[str]) -> str | None:
    """Returns the topology that stands for one device, or the smallest slice, of a kind.

    Args:
      kind: a device's kind as JAX tells it, such as "NVIDIA H200" or "TPU v5 lite".
      known: names of topologies, such as "h200" or "v5e:2x2", of each device the smallest first.
    """
    words = re.findall(r"\w+", kind.lower().replace(" lite", "e"))
    # Also of two words, as in "RTX 4090"; an L40 is no L4.
    words += [first + second for first, second in itertools.pairwise(words)]
    return next((name for name in known if name.partition(":")[0] in words), None)
