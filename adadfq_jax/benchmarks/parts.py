"""The times of the parts of a step, each of which is compiled and timed alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adadfq_jax.devices import pmap
from adadfq_jax.devices.pmap import DATA_AXIS
from adadfq_jax.game.state import GameState, Phase
from adadfq_jax.game.step import Game

# The time of a part is that of its first program less those of the others, which it contains.
_DIFFERENCES = {
    "generator forward": ("generator",),
    "generator backward": ("generator, gradient", "generator"),
    "teacher forward": ("teacher",),
    "teacher backward": ("teacher, gradient", "teacher"),
    "student forward": ("student",),
    "of which quantizers": ("student", "student, not quantized"),
    "student backward, to images": ("student, to images", "student"),
    "student backward, to weights": ("student, to weights", "student"),
    "procedural images": ("procedural images",),
    "learning from them": ("learning from them",),
    "optimizers": ("optimizers",),
    "evaluation of one batch": ("evaluation",),
}


def part_programs(
    game: Game, state: GameState, teacher_variables: Any, devices: list[jax.Device], evaluated: int
) -> dict[str, Callable[[], Any]]:
    """Compiles the parts of a step.

    Args:
      game: the step and its rules.
      state: a state whose ranges are set, with a device axis.
      teacher_variables: P's variables, with a device axis.
      devices: the devices of these arrays.
      evaluated: images of an evaluation's batch on each device.

    Returns:
      By name, a function without arguments that starts the part and returns its results.
    """
    network = game.network

    def generate(params, state):
        noise, labels = game.draw(state)
        share = noise.shape[0] // len(devices)
        return game.generator.apply({"params": params}, noise[:share], labels[:share])

    def answer(learnt, images, state, teacher):
        student = learnt | {"bits": state.bits, "ranges": state.ranges}
        return network.apply(student | {"batch_stats": teacher["batch_stats"]}, images)

    def pull(function, *primals):
        value, back = jax.vjp(function, *primals)
        return back(value)

    def optimize(player, optimizer):
        updates, opt_state = optimizer.update(player.params, player.opt_state, player.params)
        return jax.tree.map(lambda p, u: p - 1e-4 * u, player.params, updates), opt_state

    def compiled(function):
        return pmap.map_over_devices(function, devices)

    images = compiled(lambda state: generate(state.generator.params, state))(state)
    many = compiled(lambda images: jnp.resize(images, (evaluated, *images.shape[1:])))(images)
    functions = {
        "generator": lambda s, t, x: generate(s.generator.params, s),
        "generator, gradient": lambda s, t, x: pull(lambda p: generate(p, s), s.generator.params),
        "teacher": lambda s, t, x: game.run_teacher(t, x),
        "teacher, gradient": lambda s, t, x: pull(lambda x: game.run_teacher(t, x), x),
        "student": lambda s, t, x: answer(s.student.params, x, s, t),
        "student, not quantized": lambda s, t, x: network.apply(
            t | {"params": s.student.params["params"]}, x
        ),
        "student, to images": lambda s, t, x: pull(lambda x: answer(s.student.params, x, s, t), x),
        "student, to weights": lambda s, t, x: pull(lambda q: answer(q, x, s, t), s.student.params),
        "optimizers": lambda s, t, x: (
            optimize(s.generator, game.generator_optimizer),
            optimize(s.student, game.student_optimizer),
        ),
    }
    timed = {name: compiled(function) for name, function in functions.items()}
    calls = {name: lambda f=f: f(state, teacher_variables, images) for name, f in timed.items()}
    if game.rules.samples.procedural:
        draw = compiled(
            lambda s, x: game.extra_images(s, x, jax.lax.axis_index(DATA_AXIS), Phase.PLAY)[0]
        )
        learn = compiled(
            lambda s, t, x: (
                game.run_teacher(t, x)[0],
                pull(lambda q: answer(q, x, s, t), s.student.params),
            )
        )
        more = draw(state, images)
        calls["procedural images"] = lambda: draw(state, images)
        calls["learning from them"] = lambda: learn(state, teacher_variables, more)
    return calls | {"evaluation": lambda: timed["student"](state, teacher_variables, many)}


def part_times(times: dict[str, float]) -> dict[str, float]:
    """Returns the time of each part in seconds.

    Args:
      times: seconds of each program of `part_programs`, by name.
    """
    return {
        part: times[names[0]] - sum(times[name] for name in names[1:])
        for part, names in _DIFFERENCES.items()
        if names[0] in times
    }
