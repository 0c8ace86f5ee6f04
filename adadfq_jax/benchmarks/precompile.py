"""Forecasts of memory and work on TPUs and GPUs that are not here, by compiling a step for them."""

import math
import time
import types
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from adadfq_jax.benchmarks import gpu_cards, hlo, kernels, tpu_slices
from adadfq_jax.config.checks import validate
from adadfq_jax.config.resolve import resolve
from adadfq_jax.devices import pmap
from adadfq_jax.devices.memory import program_bytes
from adadfq_jax.errors import ConfigError
from adadfq_jax.game import programs
from adadfq_jax.game.state import Phase
from adadfq_jax.game.step import Game
from adadfq_jax.teachers.random_weights import teacher_or_random

TOPOLOGIES = (*tpu_slices.TOPOLOGIES, *gpu_cards.TOPOLOGIES)


def precompile(config: ml_collections.ConfigDict, topologies: Sequence[str]) -> dict[str, Any]:
    """Compiles a step of play for TPUs and GPUs, with their own compilers.

    Args:
      config: the run's configuration; without `teacher.path`, the teacher is `teacher.architecture`
        with random weights.
      topologies: names in `TOPOLOGIES`, such as `v5e:4x4` (a slice of TPUs), `h100` (a card) or
        `h100:1x8` (a computer with eight).

    Returns:
      `network`, `bits`, `batch_size` and `slices`, a list with a dict for each topology:
      `topology`, `chips`, `compile_s`, `steps` of the compiled program; in bytes on each chip,
      `arguments`, `outputs` (without those that reuse an argument's memory), `temporaries`,
      `program`, their sum `needed`, and `memory`, the chip's size; for each chip and step, `flops`,
      `bytes` that are read and written, `collectives`, (count, bytes of results) by kind, `kernels`
      by kind (None for a TPU), and `seconds`, an estimate of the step's time (for a TPU the
      compiler's, None where it makes none; for a GPU that of `kernels.seconds`).

    Raises:
      ConfigError: a topology is unknown or cannot share the batch evenly, or a compiler is missing.
    """
    config = config.copy_and_resolve_references()
    validate(config)
    for topology in topologies:
        if topology not in TOPOLOGIES:
            raise ConfigError(_unknown(topology))
        chips = _chips(topology)
        if config.batch_size % chips:
            raise ConfigError(
                f"batch_size={config.batch_size} does not divide evenly over the {chips} chips of "
                f"{topology}; every chip needs the same number of images."
            )
        _vendor(topology).require_compiler()
    teacher, weights = teacher_or_random(config)
    config = resolve(config, teacher)
    game = Game.create(config, teacher.module, teacher.image_size)
    state = game.init(config, teacher.variables)
    return {
        "network": f"{teacher.architecture}, {teacher.image_size} px, {weights}",
        "bits": f"w{config.quant.weight_bits}a{config.quant.activation_bits}",
        "batch_size": config.batch_size,
        "slices": [_measure(config, game, state, teacher.variables, name) for name in topologies],
    }


def _vendor(topology: str) -> types.ModuleType:
    """Returns the module that knows a topology and its compiler."""
    return gpu_cards if topology in gpu_cards.TOPOLOGIES else tpu_slices


def _chip(topology: str) -> str:
    return topology.partition(":")[0]


def _chips(topology: str) -> int:
    return math.prod(int(side) for side in topology.partition(":")[2].split("x") if side)


def _measure(config, game: Game, state: Any, variables: Any, topology: str) -> dict[str, Any]:
    devices = _vendor(topology).devices(topology)
    on_gpu = topology in gpu_cards.TOPOLOGIES
    # What a run on GPUs compiles takes many steps: XLA then keeps kernels in the layout that
    # convolutions want, and turns them once before the first step and once after the last.
    steps = next(programs.dispatches(0, config.steps_per_epoch, config, "gpu")) if on_gpu else 1
    began = time.perf_counter()
    shapes = [pmap.replicated_types(tree, len(devices)) for tree in (state, variables)]
    try:
        lowered = programs.lower(game, devices, Phase.PLAY, steps, *shapes)
        program = lowered.compile(gpu_cards.COMPILER_OPTIONS if on_gpu else None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"a step does not fit {topology}: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
    seconds = time.perf_counter() - began
    plan = program.memory_analysis()
    return {
        "topology": topology,
        "chips": len(devices),
        "compile_s": seconds,
        "steps": steps,
        "arguments": plan.argument_size_in_bytes,
        "outputs": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
        "program": plan.generated_code_size_in_bytes,
        "needed": program_bytes(program) + plan.generated_code_size_in_bytes,
        "collectives": hlo.collectives(program.as_text()),
    } | (_work_on_gpu(program, steps, topology) if on_gpu else _work_on_tpu(program, topology))


def _work_on_tpu(program: jax.stages.Compiled, topology: str) -> dict[str, Any]:
    cost = program.cost_analysis()
    estimate = cost.get("optimal_seconds", 0)  # negative where XLA cannot estimate a part
    return {
        "memory": tpu_slices.CHIPS[_chip(topology)].memory,
        "flops": cost.get("flops"),
        "bytes": cost.get("bytes accessed"),
        "kernels": None,
        "seconds": estimate if estimate > 0 else None,
    }


def _work_on_gpu(program: jax.stages.Compiled, steps: int, topology: str) -> dict[str, Any]:
    card, found = gpu_cards.CARDS[_chip(topology)], kernels.kernels(program.as_text())
    return {
        "memory": card.memory,
        "flops": sum(kernel.times * kernel.flops for kernel in found) / steps,
        "bytes": sum(kernel.times * kernel.bytes for kernel in found) / steps,
        "kernels": {kind: number / steps for kind, number in kernels.count(found).items()},
        "seconds": kernels.seconds(found, card) / steps,
    }


def _unknown(topology: str) -> str:
    """Returns why a name is no topology, and which there are."""
    cards = ", ".join(gpu_cards.CARDS)
    slices = ", ".join(tpu_slices.CHIPS)
    known = (
        f"GPUs are {cards}, by computers and cards in each such as h100:1x8; TPUs are {slices}, by "
        "their slice such as v5e:4x4."
    )
    if not topology.strip():
        return f"--topology has an empty name: {known}"
    chip = _chip(topology.lower())
    of_chip = [name for name in TOPOLOGIES if _chip(name) == chip]
    if of_chip:
        return f"unknown topology {topology!r}: of {chip} there are {', '.join(of_chip)}."
    return f"unknown topology {topology!r}: {known}"


def precompile_table(result: dict[str, Any]) -> str:
    """Formats a result of `precompile` as a plain table."""
    lines = [
        f"{result['network']}, {result['bits']}, batch {result['batch_size']}, a step of play",
        "",
        f"{'topology':<12}{'chips':>6}{'compiled in':>13}{'arguments':>11}{'outputs':>9}"
        f"{'temporaries':>13}{'program':>9}{'of':>9}{'GFLOP':>9}{'moved':>9}{'estimate':>11}"
        "  collectives",
    ]
    for row in result["slices"]:
        a, o, t, p, moved = (
            "-" if row[name] is None else f"{row[name] / 1e6:.1f}"
            for name in ("arguments", "outputs", "temporaries", "program", "bytes")
        )
        flops = "-" if row["flops"] is None else f"{row['flops'] / 1e9:.2f}"
        seconds = "-" if row["seconds"] is None else f"{row['seconds'] * 1e3:.2f} ms"
        found = "; ".join(
            f"{count} {kind}, {size / 1e6:.2f} MB"
            for kind, (count, size) in row["collectives"].items()
        )
        lines.append(
            f"{row['topology']:<12}{row['chips']:>6}{row['compile_s']:>11.1f} s{a:>11}{o:>9}{t:>13}"
            f"{p:>9}{row['memory'] / 1e6:>9.0f}{flops:>9}{moved:>9}{seconds:>11}  {found or 'none'}"
        )
        if row["kernels"]:
            kinds = ", ".join(f"{number:.0f} {kind}" for kind, number in row["kernels"].items())
            lines.append(f"{'':<12}{sum(row['kernels'].values()):.0f} kernels a step: {kinds}")
        if row["needed"] > row["memory"]:
            lines.append(f"{'':<12}does not fit: {row['needed'] / 1e9:.1f} GB a chip")
    notes = ["MB, FLOP and collectives are per chip; FLOP and moved MB per step."]
    if any(row["kernels"] for row in result["slices"]):
        notes.append(
            "A GPU's estimate is made from public figures and not measured: of every kernel the "
            "longest of\na launch, its bytes and its FLOP at the card's peaks."
        )
    return "\n".join([*lines, "", *notes])
