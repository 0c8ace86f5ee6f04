"""Several games on one machine: which way of playing them is the fastest.

In turn, each on all devices; side by side, each on one device; or all in one program, whose
convolutions with a kernel per game become grouped ones. `sweep --jobs` plays side by side, in
processes.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adadfq_jax import hardware, parallel
from adadfq_jax.game import Game, GameState, Phase

WAYS = ("in turn", "side by side", "one program")


def compare(
    game: Game,
    configs: list[ml_collections.ConfigDict],
    teacher: Any,
    devices: list[jax.Device],
    *,
    steps: int,
    rounds: int,
) -> dict[str, float]:
    """Times a play step of several games of equal rules, in each way.

    Args:
      game: the rules.
      configs: one a game, of different seeds or bit-widths.
      teacher: P's variables.
      devices: all there are.
      steps: how many steps of every game a round takes; one more before them is not counted.
      rounds: how many; the ways take turns.

    Returns:
      By way, the median seconds that a step of one game takes.
    """
    states = [game.init(config, teacher) for config in configs]
    plays = {way: player(way, game, states, teacher, devices, Phase.PLAY) for way in WAYS}
    times: dict[str, list[float]] = {way: [] for way in plays}
    for _ in range(rounds):
        for way, play in plays.items():
            times[way] += hardware.seconds(play, steps)
    return {way: statistics.median(seconds) / len(configs) for way, seconds in times.items()}


def player(
    way: str,
    game: Game,
    states: list[GameState],
    teacher: Any,
    devices: list[jax.Device],
    phase: Phase,
) -> Callable[[], list[Any]]:
    """Sets up games to be played in one of the `WAYS`.

    Args:
      way: which.
      game: the rules.
      states: one a game, arrays without a device axis.
      teacher: P's variables.
      devices: all there are.
      phase: of the steps.

    Returns:
      A function that starts one step of every game and returns their states, on devices.
    """
    step = functools.partial(game.step, phase=phase)
    places = [devices]
    if way == "one program":
        states = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)]
        step = jax.vmap(step, (0, None, None))
    elif way == "side by side":
        places = [[device] for device in devices]
    tables = [
        (
            parallel.map_over_devices(step, place),
            parallel.replicate(teacher, place),
            parallel.device_indices(place),
        )
        for place in places
    ]
    held = [
        parallel.replicate(state, places[index % len(places)]) for index, state in enumerate(states)
    ]

    def advance() -> list[Any]:
        for index, state in enumerate(held):
            play, *rest = tables[index % len(tables)]
            held[index], _ = play(state, *rest)
        return held

    return advance
