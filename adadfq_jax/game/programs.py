"""Compiled programs of training steps, and how many steps each program takes."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adadfq_jax.devices import pmap
from adadfq_jax.game.state import GameState, Phase
from adadfq_jax.game.step import Game
from adadfq_jax.ops.packing import Packed, pack

# XLA's CPU backend runs convolutions inside a loop 30 to 50 times slower than outside.
_STEPS_PER_DISPATCH = {"cpu": 1}

_STEPS_PER_DISPATCH_ELSEWHERE = 50

# Platforms that launch a kernel for each array that a step writes.
_PACKING = ("gpu",)

_Step = Callable[[GameState], tuple[GameState, dict[str, jax.Array]]]

# XLA's CPU backend removes the barriers of rematerialisation first and then merges what is computed
# twice, which undoes the rematerialisation. Without that pass the barriers stay.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def dispatches(
    step: int, total: int, config: ml_collections.ConfigDict, platform: str
) -> Iterator[int]:
    """Yields how many steps each dispatch takes; no dispatch crosses the end of an epoch.

    Args:
      step: steps taken so far.
      total: steps of the run.
      config: the run's configuration.
      platform: the devices' platform, such as "cpu".
    """
    most = config.steps_per_dispatch or _STEPS_PER_DISPATCH.get(
        platform, _STEPS_PER_DISPATCH_ELSEWHERE
    )
    while step < total:
        within = step % config.steps_per_epoch
        # Dispatches are aligned to the epoch's start, so that a resumed run takes the same ones.
        count = min(most - within % most, config.steps_per_epoch - within)
        yield count
        step += count


def steps(
    game: Game,
    devices: list[jax.Device],
    phase: Phase,
    count: int,
    state: GameState,
    teacher_variables: Any,
) -> jax.stages.Compiled:
    """Compiles a program that takes `count` steps of a phase on all devices.

    The program is kept, so that another run of equal rules in this process does not compile again.

    Args:
      game: the step and its rules.
      devices: where the program runs.
      phase: what the steps train.
      count: number of steps.
      state, teacher_variables: arrays with a device axis, or their `jax.ShapeDtypeStruct`.

    Returns:
      A program from (state, teacher's variables, device indices; with a device axis, the given
      images of a game that has some) to (state, metrics with a leading axis of steps). It reuses
      the memory of the state that it is given.
    """
    leaves, tree = jax.tree.flatten((state, teacher_variables))
    types = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _compiled(game, tuple(devices), phase, count, tree, types)


@functools.lru_cache(maxsize=16)
def _compiled(game, devices, phase, count, tree, types) -> jax.stages.Compiled:
    lowered = lower(game, devices, phase, count, *jax.tree.unflatten(tree, types))
    undone = game.network.remat and devices[0].platform == "cpu"
    return lowered.compile(compiler_options=_KEEP_BARRIERS if undone else None)


def lower(
    game: Game,
    devices: Sequence[jax.Device],
    phase: Phase,
    count: int,
    state: GameState,
    teacher_variables: Any,
) -> jax.stages.Lowered:
    """Returns the program of `steps`, of the same arguments, before it is compiled."""

    def run(state, teacher_variables, device_index, *given_images):
        def step(state):
            return game.step(state, teacher_variables, device_index, phase, *given_images)

        if count == 1:
            state, metrics = step(state)
            return state, jax.tree.map(lambda value: value[None], metrics)
        if devices[0].platform in _PACKING:
            return _packed_steps(step, state, count)
        return jax.lax.scan(lambda state, _: step(state), state, length=count)

    step = pmap.map_over_devices(run, list(devices), donate=(0,))
    index = jax.ShapeDtypeStruct((len(devices),), jnp.int32)
    arguments = [state, teacher_variables, index]
    if game.given_shape is not None:
        arguments.append(jax.ShapeDtypeStruct((len(devices), *game.given_shape), jnp.uint8))
    return step.lower(*arguments)


def _packed_steps(step: _Step, state: GameState, count: int) -> tuple[GameState, Any]:
    """Takes steps between which the players' small arrays are one array, and so are the metrics.

    XLA then writes new parameters and moments of many layers by one kernel of a GPU.
    """

    def body(parts, _):
        state, metrics = step(_joined(parts))
        return _parted(state), pack(metrics)

    parts, rows = jax.lax.scan(body, _parted(state), length=count)
    return _joined(parts), jax.vmap(Packed.unpack)(rows)


def _parted(state: GameState) -> tuple[GameState, Packed]:
    players = state.generator, state.student
    return state.replace(generator=None, student=None), pack(players)


def _joined(parts: tuple[GameState, Packed]) -> GameState:
    state, players = parts
    generator, student = players.unpack()
    return state.replace(generator=generator, student=student)
