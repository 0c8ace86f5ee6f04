"""The steps of a game as compiled programs, and what they ask of a device, told beforehand."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adadfq_jax.devices import pmap
from adadfq_jax.game.state import GameState, Phase
from adadfq_jax.game.step import Game

# XLA's CPU backend runs convolutions inside a loop 30 to 50 times slower than outside.
_STEPS_PER_DISPATCH = {"cpu": 1}

_STEPS_PER_DISPATCH_ELSEWHERE = 50

# XLA's CPU backend takes away the barriers of rematerialisation before it looks for what is
# computed twice, and so undoes it.
_KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def dispatches(
    step: int, total: int, config: ml_collections.ConfigDict, platform: str
) -> Iterator[int]:
    """Yields how many steps to take at a time; a dispatch never crosses the end of an epoch.

    Args:
      step: steps taken so far.
      total: steps in all.
      config: the run's configuration.
      platform: of the devices, such as "cpu".
    """
    most = config.steps_per_dispatch or _STEPS_PER_DISPATCH.get(
        platform, _STEPS_PER_DISPATCH_ELSEWHERE
    )
    while step < total:
        within = step % config.steps_per_epoch
        # Counted from the epoch's start, so that a resumed run dispatches the same pieces.
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
    """Compiles the function that plays `count` steps of a phase on all devices.

    It is kept, so that another game of the same rules in this process need not compile again.

    Args:
      game: the rules.
      devices: where to play.
      phase: what the steps do.
      count: how many.
      state, teacher_variables: arrays with a device axis, or their `jax.ShapeDtypeStruct`.

    Returns:
      A program from (state, teacher's variables, device indices) to (state, metrics with a leading
      axis of steps), which takes over the memory of the state.
    """
    leaves, tree = jax.tree.flatten((state, teacher_variables))
    types = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    return _compiled(game, tuple(devices), phase, count, tree, types)


@functools.lru_cache(maxsize=16)
def _compiled(game, devices, phase, count, tree, types) -> jax.stages.Compiled:
    def run(state, teacher_variables, device_index):
        def body(state, _):
            return game.step(state, teacher_variables, device_index, phase)

        if count > 1:
            return jax.lax.scan(body, state, length=count)
        state, metrics = body(state, None)
        return state, jax.tree.map(lambda value: value[None], metrics)

    step = pmap.map_over_devices(run, list(devices), donate=(0,))
    index = jax.ShapeDtypeStruct((len(devices),), jnp.int32)
    lowered = step.lower(*jax.tree.unflatten(tree, types), index)
    undone = game.network.remat and devices[0].platform == "cpu"
    return lowered.compile(compiler_options=_KEEP_BARRIERS if undone else None)
