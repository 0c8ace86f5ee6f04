"""Measures the speed of training steps, and the share of the device's peak that they use."""

import dataclasses
import functools
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from adadfq_jax.benchmarks import timing
from adadfq_jax.benchmarks.parts import part_programs, part_times
from adadfq_jax.config.checks import validate
from adadfq_jax.config.fields import flatten
from adadfq_jax.config.resolve import resolve
from adadfq_jax.devices import machine, memory, pmap
from adadfq_jax.errors import ConfigError, install_command
from adadfq_jax.game import programs
from adadfq_jax.game.state import GameState, Phase
from adadfq_jax.game.step import Game
from adadfq_jax.models.network import Teacher
from adadfq_jax.storage.files import on_a_disk
from adadfq_jax.teachers.random_weights import teacher_or_random

# The reference implements only these values of the fields that change the work of a step of play.
_PLAYED_BY_PYTORCH = {
    "samples.procedural": 0,
    "quant.learned_ranges": False,
    "student.optimizer": "sgd",
    "precision.teacher": "float32",
    "precision.generator": "float32",
    "remat": False,
}
_PART = "part "  # before the names of parts of a step


def benchmark(
    config: ml_collections.ConfigDict,
    *,
    steps: int = 10,
    rounds: int = 5,
    parts: bool = True,
    against: str | None = None,
    profile: str | Path | None = None,
) -> dict[str, Any]:
    """Times training steps.

    All contestants (steps of our three phases, parts of a step, PyTorch's steps) take turns for
    some rounds, so that a machine that slows down slows all of them. As in a run, a step is
    dispatched while the one before is computed; its time is from the end of that one to its own.

    Args:
      config: the run's configuration; without `teacher.path`, the teacher is `teacher.architecture`
        (by default ResNet-20) with random weights.
      steps: steps of each contestant in a round; one more step before them is not timed.
      rounds: number of rounds.
      parts: whether to time the parts of a step, too.
      against: "torch" to time the two procedures of `reference/`; None not to.
      profile: a new or empty folder for a profiler trace of one round of play.

    Returns:
      The measurements, as `adadfq benchmark --json` prints them; in seconds, bytes and FLOP.

    Raises:
      ConfigError: an argument cannot be used, or PyTorch is missing, or has no such network.
    """
    config = config.copy_and_resolve_references()
    validate(config)
    teacher, weights = teacher_or_random(config)
    config = resolve(config, teacher)
    devices = machine.choose_devices(config.devices, config.batch_size)
    _check(against, config, teacher, devices[0].platform)
    if profile is not None:
        profile = on_a_disk(profile)
        _make_empty_folder(profile)
    game = Game.create(config, teacher.module, teacher.image_size)
    load = os.getloadavg()[0]

    bench = _Bench.compile(game, config, teacher, devices)
    contestants = bench.phases()
    if parts:
        contestants |= bench.parts(config.evaluation.batch_size // len(devices))
    if against is not None:
        contestants |= _opponents(game, config, teacher, devices[0].platform)

    turns = [{name: turn(steps) for name, turn in contestants.items()} for _ in range(rounds)]
    if profile is not None:
        with jax.profiler.trace(str(profile)):
            contestants["play"](steps)
    times = {name: [t for turn in turns for t in turn[name]] for name in contestants}
    play = bench.compiled[Phase.PLAY]
    flops = play.cost_analysis()["flops"] * len(devices)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    result = {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "cores": machine.cores(),
        "load": load,
        "versions": {"python": platform.python_version(), "jax": jax.__version__},
        "network": f"{teacher.architecture}, {teacher.image_size} px, {weights}",
        "bits": f"w{config.quant.weight_bits}a{config.quant.activation_bits}",
        "batch_size": config.batch_size,
        "compile_s": sum(bench.compile_s.values()),
        "phases": {
            name: _summary(times[name])
            | {"compile_s": seconds, "images_per_s": config.batch_size / medians[name]}
            for name, seconds in bench.compile_s.items()
        },
        "flops_per_step": flops,
        "flops_per_s": flops / medians["play"],
        "matmul_flops_per_s": timing.matrix_product(devices),
        "peak_bytes": memory.peak_bytes(play, devices[0]),
        "parts": part_times(
            {
                name.removeprefix(_PART): seconds
                for name, seconds in medians.items()
                if name.startswith(_PART)
            }
        ),
    }
    return result if against is None else result | _against_torch(result["versions"], turns, times)


# Takes a number of steps, and returns the seconds of each.
Contestant = Callable[[int], list[float]]


@dataclasses.dataclass
class _Bench:
    """The compiled steps, and the state that each passes to the next."""

    game: Game
    devices: list[jax.Device]
    variables: Any
    state: GameState
    compiled: dict[Phase, jax.stages.Compiled]
    compile_s: dict[str, float]  # by phase, seconds

    @classmethod
    def compile(
        cls,
        game: Game,
        config: ml_collections.ConfigDict,
        teacher: Teacher,
        devices: list[jax.Device],
    ) -> "_Bench":
        """Compiles a step of each phase, and times the compilation."""
        variables = pmap.replicate(teacher.variables, devices)
        state = pmap.replicate(game.init(config, teacher.variables), devices)
        compiled, compile_s = {}, {}
        for phase in Phase:
            began = time.perf_counter()
            compiled[phase] = programs.steps(game, devices, phase, 1, state, variables)
            compile_s[phase.value] = time.perf_counter() - began
        return cls(game, devices, variables, state, compiled, compile_s)

    def phases(self) -> dict[str, Contestant]:
        """Returns a contestant for each phase; first takes a step of calibration to set ranges."""
        indices = pmap.device_indices(self.devices)

        def start(phase: Phase) -> Any:
            self.state, metrics = self.compiled[phase](self.state, self.variables, indices)
            return metrics

        jax.block_until_ready(start(Phase.CALIBRATE))  # so that ranges are set
        return {
            phase.value: functools.partial(
                timing.seconds_in_flight, functools.partial(start, phase)
            )
            for phase in Phase
        }

    def parts(self, evaluated: int) -> dict[str, Contestant]:
        """Returns a contestant for each part of a step.

        Args:
          evaluated: images of an evaluation's batch on each device.
        """
        # A copy, because the steps reuse the memory of the state that they are given.
        kept = jax.tree.map(jnp.copy, self.state)
        found = part_programs(self.game, kept, self.variables, self.devices, evaluated)
        return {
            f"{_PART}{name}": functools.partial(timing.seconds, part)
            for name, part in found.items()
        }


def _opponents(
    game: Game, config: ml_collections.ConfigDict, teacher: Teacher, platform: str
) -> dict[str, Contestant]:
    import torch

    from adadfq_jax.benchmarks.torch_opponent import opponents

    torch.set_num_threads(machine.cores())
    plays = opponents(game, config, teacher.variables, platform)
    return {
        f"torch {name}": functools.partial(timing.seconds, play) for name, play in plays.items()
    }


def _against_torch(
    versions: dict[str, str],
    turns: list[dict[str, list[float]]],
    times: dict[str, list[float]],
) -> dict[str, Any]:
    """Returns the part of the result on PyTorch: times, and medians of the ratios to ours."""
    import torch

    def ratio(name: str) -> float:
        return statistics.median(
            statistics.median(turn[name]) / statistics.median(turn["play"]) for turn in turns
        )

    return {
        "versions": versions | {"torch": torch.__version__},
        "torch": {
            "threads": torch.get_num_threads(),
            "phases": {"play": _summary(times["torch authors"])},
            "lean": {"phases": {"play": _summary(times["torch lean"])}},
        },
        "ratio": ratio("torch authors"),
        "ratio_same_algorithm": ratio("torch lean"),
    }


def _check(
    against: str | None, config: ml_collections.ConfigDict, teacher: Teacher, backend: str
) -> None:
    if against not in (None, "torch"):
        raise ConfigError(f"--against must be torch, not {against!r}.")
    if against is None:
        return
    flat = flatten(config.to_dict())
    for field, value in _PLAYED_BY_PYTORCH.items():
        if flat[field] != value:
            raise ConfigError(
                f"--against=torch has only {field}={value!r}, not {flat[field]!r} (game.method is "
                f"{config.game.method!r}): set that, or leave --against out to time ours alone."
            )
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"--against=torch needs PyTorch: {install_command('torch')}.")
    import torch

    from adadfq_jax.benchmarks.torch_opponent import reference_method, serves

    if reference_method(config.game.method) is None:
        raise ConfigError(
            f"--against=torch knows the losses of adadfq and gdfq, not those of "
            f"{config.game.method!r}; leave it out to time ours alone."
        )
    if teacher.image_size % 4:
        raise ConfigError(
            "--against=torch makes images of sizes that 4 divides, not of "
            f"{teacher.image_size} pixels; leave it out to time ours alone."
        )
    if not serves(teacher.module):
        raise ConfigError(
            "--against=torch knows the ResNets, and MobileNetV2 with a dense classifier, not "
            f"{teacher.architecture}; leave it out to time ours alone."
        )
    if backend == "tpu" or (backend == "gpu" and not torch.cuda.is_available()):
        raise ConfigError(f"--against=torch: this PyTorch cannot use the {backend} that JAX uses.")


def _make_empty_folder(path: Path) -> None:
    # Made before anything is measured, since a failure later would lose the measurements.
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ConfigError(f"the profile's folder {str(path)!r} exists and is not empty.")
    except OSError as error:
        raise ConfigError(f"the profile's folder {str(path)!r} cannot be made: {error}.") from error


def _summary(seconds: list[float]) -> dict[str, float]:
    low, high = np.quantile(seconds, (0.1, 0.9)).tolist()
    return {"median_s": statistics.median(seconds), "p10_s": low, "p90_s": high}
