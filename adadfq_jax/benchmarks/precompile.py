"""Forecasts of memory and work on TPU slices that are not here, by compiling a step for them."""

import collections
import dataclasses
import importlib.util
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from adadfq_jax.config.checks import validate
from adadfq_jax.config.resolve import resolve
from adadfq_jax.devices import pmap
from adadfq_jax.devices.memory import program_bytes
from adadfq_jax.errors import ConfigError, install_command, nearest
from adadfq_jax.game import programs
from adadfq_jax.game.state import Phase
from adadfq_jax.game.step import Game
from adadfq_jax.teachers.random_weights import teacher_or_random


@dataclasses.dataclass(frozen=True)
class _Chip:
    """A generation of TPU, from its public description.

    Attributes:
      memory: memory of a chip in bytes.
      shapes: shapes of the slices that there are.
    """

    memory: int
    shapes: tuple[str, ...]


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
CHIPS = {
    "v4": _Chip(32 * 2**30, _CUBES),
    "v5e": _Chip(16 * 2**30, _FLAT),
    "v5p": _Chip(95 * 2**30, _CUBES),
    "v6e": _Chip(32 * 2**30, _FLAT),
}
TOPOLOGIES = tuple(f"{chip}:{shape}" for chip, kind in CHIPS.items() for shape in kind.shapes)

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(
    rf"= (?P<types>.+?) (?P<kind>{'|'.join(_COLLECTIVES)})(?P<start>-start)?\("
)
_TYPE = re.compile(r"(?P<type>[a-z]+\d+\w*|pred)\[(?P<shape>[\d,]*)\]")


def precompile(config: ml_collections.ConfigDict, topologies: Sequence[str]) -> dict[str, Any]:
    """Compiles a step of play for TPU slices, with the TPU's own compiler.

    Args:
      config: the run's configuration; without `teacher.path`, the teacher is `teacher.architecture`
        with random weights.
      topologies: names in `TOPOLOGIES`, such as `v5e:4x4`.

    Returns:
      `network`, `bits`, `batch_size` and `slices`, a list with a dict for each slice: `topology`,
      `chips`, `compile_s`; in bytes on each chip, `arguments`, `outputs` (without those that reuse
      an argument's memory), `temporaries`, `program`, their sum `needed`, and `memory`, the chip's
      size; `flops` of each chip; `collectives`, (count, bytes of results on each chip) by kind;
      `seconds`, the compiler's estimate of a step, None where it makes none.

    Raises:
      ConfigError: a slice is unknown or cannot share the batch evenly, or the compiler is missing.
    """
    config = config.copy_and_resolve_references()
    validate(config)
    for topology in topologies:
        if topology not in TOPOLOGIES:
            raise ConfigError(
                f"unknown topology {topology!r}: {nearest(topology, TOPOLOGIES)} There are "
                f"{', '.join(TOPOLOGIES)}."
            )
        chips = _chips(topology)
        if config.batch_size % chips:
            raise ConfigError(
                f"batch_size={config.batch_size} does not divide evenly over the {chips} chips of "
                f"{topology}; every chip needs the same number of images."
            )
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"compiling for a TPU needs its compiler: {install_command('tpu')} (no TPU needed)."
        )
    teacher, weights = teacher_or_random(config)
    config = resolve(config, teacher)
    game = Game.create(config, teacher.module, teacher.image_size)
    state = game.init(config, teacher.variables)
    return {
        "network": f"{teacher.architecture}, {teacher.image_size} px, {weights}",
        "bits": f"w{config.quant.weight_bits}a{config.quant.activation_bits}",
        "batch_size": config.batch_size,
        "slices": [_measure(game, state, teacher.variables, name) for name in topologies],
    }


def _chips(topology: str) -> int:
    return math.prod(map(int, topology.partition(":")[2].split("x")))


def _measure(game: Game, state: Any, variables: Any, topology: str) -> dict[str, Any]:
    devices = _devices(topology)
    began = time.perf_counter()
    types = [pmap.replicated_types(tree, len(devices)) for tree in (state, variables)]
    try:
        program = programs.steps(game, devices, Phase.PLAY, 1, *types)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"a step does not fit {topology}: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
    seconds = time.perf_counter() - began
    plan, cost = program.memory_analysis(), program.cost_analysis()
    estimate = cost.get("optimal_seconds", 0)  # negative where XLA cannot estimate a part
    return {
        "topology": topology,
        "chips": len(devices),
        "compile_s": seconds,
        "arguments": plan.argument_size_in_bytes,
        "outputs": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
        "program": plan.generated_code_size_in_bytes,
        "needed": program_bytes(program) + plan.generated_code_size_in_bytes,
        "memory": CHIPS[topology.partition(":")[0]].memory,
        "flops": cost.get("flops"),
        "collectives": collectives(program.as_text()),
        "seconds": estimate if estimate > 0 else None,
    }


def _devices(topology: str) -> list[jax.Device]:
    """Returns the devices of a slice that is not here; programs can only be compiled for them."""
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"this libtpu cannot compile for {topology}: {str(error).splitlines()[0]}"
        ) from error


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Returns (number, bytes of results) of a compiled program's collectives, by kind.

    Args:
      text: the program, from `jax.stages.Compiled.as_text`.
    """
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for found in _INSTRUCTION.finditer(text):
        sizes = [
            math.prod(map(int, filter(None, one["shape"].split(",")))) * _width(one["type"])
            for one in _TYPE.finditer(found["types"])
        ]
        if found["start"] and found["kind"] != "all-reduce":
            # The tuple holds operands, results and, for some kinds, semaphores: results are kept.
            sizes = sizes[len(sizes) // 2 :] if found["kind"] == "all-gather" else sizes[1:2]
        counts[found["kind"]][0] += 1
        counts[found["kind"]][1] += sum(sizes)
    return {kind: tuple(numbers) for kind, numbers in counts.items()}


def _width(name: str) -> int:
    """Returns the size in bytes of a number of an HLO type, such as `bf16`."""
    digits = re.search(r"\d+", name)
    return max(int(digits[0]) // 8, 1) if digits else 1  # pred


def precompile_table(result: dict[str, Any]) -> str:
    """Formats a result of `precompile` as a plain table."""
    lines = [
        f"{result['network']}, {result['bits']}, batch {result['batch_size']}, a step of play",
        "",
        f"{'slice':<10}{'chips':>6}{'compiled in':>13}{'arguments':>11}{'outputs':>9}"
        f"{'temporaries':>13}{'program':>9}{'of':>9}{'GFLOP':>9}{'estimate':>11}  collectives",
    ]
    for row in result["slices"]:
        megabytes = [row[name] / 1e6 for name in ("arguments", "outputs", "temporaries", "program")]
        a, o, t, p = (f"{value:.1f}" for value in megabytes)
        flops = "-" if row["flops"] is None else f"{row['flops'] / 1e9:.2f}"
        seconds = "-" if row["seconds"] is None else f"{row['seconds'] * 1e3:.2f} ms"
        found = "; ".join(
            f"{count} {kind}, {size / 1e6:.2f} MB"
            for kind, (count, size) in row["collectives"].items()
        )
        lines.append(
            f"{row['topology']:<10}{row['chips']:>6}{row['compile_s']:>11.1f} s{a:>11}{o:>9}{t:>13}"
            f"{p:>9}{row['memory'] / 1e6:>9.0f}{flops:>9}{seconds:>11}  {found or 'none'}"
        )
        if row["needed"] > row["memory"]:
            lines.append(f"{'':<10}does not fit: {row['needed'] / 1e9:.1f} GB a chip")
    return "\n".join([*lines, "", "MB, FLOP and collectives are per chip."])
