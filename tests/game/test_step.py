"""Phases, draws, and a game that does not depend on the devices that play it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adadfq_jax.config import recipes
from adadfq_jax.devices import pmap
from adadfq_jax.game.state import Phase
from adadfq_jax.game.step import Game
from adadfq_jax.quantization.bits import assign_bits

# Images of a user, each of one value, so that flips and shifts leave it as it is.
OWN = np.broadcast_to(np.arange(40, 52, dtype=np.uint8)[:, None, None, None], (12, 8, 8, 3))


def make_game(config, teacher):
    recipes.fill_in(config, teacher.architecture, teacher.image_size)
    config.data.mean, config.data.std = teacher.mean, teacher.std
    return Game.create(config, teacher.module, teacher.image_size)


def as_if_calibrated(state):
    return state.replace(ranges=jax.tree.map(lambda leaf: leaf + 1, state.ranges))


def play(
    game, config, variables, devices, steps, phases=tuple(Phase), state=None, by="pmap", images=None
):
    """Plays `steps` steps in each phase; returns the final state and all metrics, on the host."""
    given = () if images is None else (pmap.replicate(images, devices),)
    state = pmap.replicate(state or game.init(config, variables), devices)
    teacher = pmap.replicate(variables, devices)
    history = []
    for phase in phases:

        def one(state, teacher, index, *given, phase=phase):
            return game.step(state, teacher, index, phase, *given)

        step = pmap.map_over_devices(one, devices, by=by)
        for _ in range(steps):
            state, metrics = step(state, teacher, pmap.device_indices(devices), *given)
            history.append(pmap.fetch(metrics))
    return state, history


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("method", "cut", "phases"),
    [
        # Two processes of two devices are compared from calibration on, in `test_processes.py`.
        pytest.param("adadfq", 0.0, (Phase.PLAY,), id="play"),
        pytest.param("adadfq", 0.0, tuple(Phase), id="adadfq", marks=pytest.mark.devices),
        # In the warm-up the plus plays as AdaDFQ does.
        pytest.param(
            *("adadfq_plus", 0.5, (Phase.CALIBRATE, Phase.PLAY)),
            id="adadfq_plus",
            marks=pytest.mark.devices,
        ),
    ],
)
def test_four_devices_play_the_game_of_one(small_config, teacher, method, cut, phases):
    """Eight steps in each phase, float64, to 1e-8; the plus with CutMix and given images.

    And by `shard_map` they play, bit for bit, as by `pmap`.
    """
    small_config.game.method = method
    small_config.samples.cutmix = cut
    images = OWN if cut else None
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), teacher.variables)
    game = make_game(small_config, teacher)
    start = game.init(small_config, variables)
    if Phase.CALIBRATE not in phases:
        start = as_if_calibrated(start)
    one, history_one = play(
        game, small_config, variables, jax.devices()[:1], 8, phases, start, images=images
    )
    devices = jax.devices()[:4]
    begun, history_begun = play(
        game, small_config, variables, devices, 8, phases[:-1], start, images=images
    )
    rest = small_config, variables, devices, 8, phases[-1:], pmap.fetch(begun)
    four, history_four = play(game, *rest, images=images)
    mapped, history_mapped = play(game, *rest, by="shard_map", images=images)
    chex.assert_trees_all_equal(history_mapped, history_four)
    chex.assert_trees_all_equal(pmap.fetch(mapped), pmap.fetch(four))
    chex.assert_trees_all_close(history_one, history_begun + history_four, rtol=1e-8, atol=1e-8)
    chex.assert_trees_all_close(pmap.fetch(one), pmap.fetch(four), rtol=1e-8, atol=1e-8)
    for leaf in jax.tree.leaves(four):
        replicas = np.asarray(leaf)
        np.testing.assert_array_equal(replicas, np.broadcast_to(replicas[:1], replicas.shape))


@pytest.mark.parametrize("method", ["adadfq", "adadfq_plus"])
def test_each_phase_moves_what_it_should(small_config, teacher, method):
    small_config.game.method = method
    small_config.epochs = 40  # so that the plus's rate has risen
    game = make_game(small_config, teacher)
    devices = jax.devices()[:1]
    moved = {}
    before = game.init(small_config, teacher.variables)
    # In the warm-up the plus trains as AdaDFQ does.
    phases = tuple(Phase) if method == "adadfq" else (Phase.CALIBRATE, Phase.PLAY)
    for phase in phases:
        if phase is Phase.PLAY:
            before = as_if_calibrated(before).replace(step=before.step + 12)
            if method == "adadfq_plus":
                learnt = jax.tree.map(lambda leaf: leaf + 1, before.student.params["clipping"])
                params = before.student.params | {"clipping": learnt}
                before = before.replace(student=before.student.replace(params=params))
        after, _ = play(game, small_config, teacher.variables, devices, 2, [phase], before)
        after = pmap.fetch(after)
        old, new = (
            {
                "generator": state.generator.params,
                "student": game.student_variables(state, teacher.variables)["params"],
                "ranges": game.student_variables(state, teacher.variables)["ranges"],
            }
            for state in (before, after)
        )
        moved[phase] = {
            "/".join(key.key for key in path if key.key in (*old, "minimum", "maximum"))
            for (path, a), b in zip(
                jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True
            )
            if not np.array_equal(a, b)
        } - {"ranges"}  # the count of updates
    # After a ReLU the smallest value is 0, as it was; kernels have both ends.
    expected = {
        Phase.CALIBRATE: {"generator", "ranges/maximum"},
        Phase.WARMUP: {"generator"},
        Phase.PLAY: {"generator", "student"}
        | ({"ranges/minimum", "ranges/maximum"} if method == "adadfq_plus" else set()),
    }
    assert moved == {phase: expected[phase] for phase in phases}


def extra_images_of(game, phase=Phase.PLAY, images=None):
    """Returns what makes the extra images of a state, compiled once."""

    def own(index, state, generated, *given):
        return game.extra_images(state, generated, index, phase, *given)

    devices = jax.devices()[:1]
    run = pmap.map_over_devices(own, devices)
    generated = 100 + jnp.arange(8.0)[:, None, None, None] * jnp.ones((8, 8, 8, 3))
    given = () if images is None else (images,)

    def of(state):
        arguments = [pmap.replicate(array, devices) for array in (state, generated, *given)]
        return pmap.fetch(run(pmap.device_indices(devices), *arguments))

    return of


def test_given_images_stand_in_a_share_of_the_places(small_config, teacher):
    """Share 0 is without such images; of share 1 all are given."""
    small_config.game.method = "adadfq_plus"
    game = make_game(small_config, teacher)
    state = game.init(small_config, teacher.variables)
    (procedural,) = extra_images_of(game)(state)
    values = (OWN[:, 0, 0, 0] / 255 - 0.5) / 0.25
    found = {}
    for share in (0.0, 0.5, 1.0):
        small_config.samples.images_share = share
        game = make_game(small_config, teacher)
        drawn = extra_images_of(game, images=OWN)
        (images,) = drawn(state)
        own = np.isclose(images[:, :1, :1, :1], values, atol=1e-6).any(-1)[:, 0, 0]
        own &= np.ptp(images, (1, 2, 3)) == 0
        # Of programs that are compiled apart, to rounding.
        np.testing.assert_allclose(images[~own], procedural[~own], rtol=1e-4, atol=1e-6)
        found[share] = own.sum()
        for changed in (state.replace(step=jnp.int32(1)), state.replace(seed=jnp.uint32(1))):
            assert not np.allclose(images, drawn(changed)[0])
    assert (found[0.0], found[1.0]) == (0, 16)
    assert 0 < found[0.5] < 16


def test_extra_images_are_new_in_every_step_and_of_every_seed(small_config, teacher):
    small_config.game.method = "adadfq_plus"
    small_config.samples.cutmix = 0.5
    game = make_game(small_config, teacher)
    state = game.init(small_config, teacher.variables)
    drawn = extra_images_of(game)
    (images,) = drawn(state)
    assert images.shape == (16, 8, 8, 3)  # two for each of the eight
    of_generated = images > 50
    assert 0 < of_generated.any((1, 2, 3)).sum() < 16
    beside = np.broadcast_to(100 + np.arange(16)[:, None, None, None] // 2, images.shape)
    np.testing.assert_array_equal(images[of_generated], beside[of_generated])
    assert extra_images_of(game, Phase.WARMUP)(state) == []
    for changed in (state.replace(step=jnp.int32(1)), state.replace(seed=jnp.uint32(1))):
        assert not np.allclose(images, drawn(changed)[0])


def test_the_generator_has_no_part_in_extra_images(small_config, teacher):
    """One step of play: G moves alike without such images and with both kinds; Q does not."""
    after = {}
    for count in (0, 1):
        small_config.samples.procedural, small_config.samples.cutmix = count, 1.0
        game = make_game(small_config.copy_and_resolve_references(), teacher)
        given = small_config, teacher.variables, jax.devices()[:1], 1, [Phase.PLAY]
        state, _ = play(game, *given, images=OWN if count else None)
        after[count] = pmap.fetch(state)
    chex.assert_trees_all_close(after[0].generator, after[1].generator, rtol=1e-4, atol=1e-6)
    kernels = [state.student.params["params"]["stem_conv"]["kernel"] for state in after.values()]
    assert not np.allclose(*kernels, rtol=1e-7, atol=0)


def test_a_phase_is_traced_once_whatever_the_bits(small_config, teacher):
    chex.clear_trace_counter()
    game = make_game(small_config, teacher)
    devices = jax.devices()[:1]
    step = pmap.map_over_devices(
        chex.assert_max_traces(
            lambda state, teacher, index: game.step(state, teacher, index, Phase.CALIBRATE), n=1
        ),
        devices,
    )
    teacher_variables = pmap.replicate(teacher.variables, devices)
    start = game.init(small_config, teacher.variables)
    losses = []
    for weight_bits, activation_bits, overrides in (
        (4, 4, ()),
        (3, 8, ()),
        (2, 2, ("stem*=w8a8",)),
    ):
        bits = assign_bits(start.bits, weight_bits, activation_bits, overrides)
        state = pmap.replicate(start.replace(bits=bits), devices)
        _, metrics = step(state, teacher_variables, pmap.device_indices(devices))
        losses.append(float(pmap.fetch(metrics)["l_q"]))
    assert len(set(losses)) == 3


def test_phases_by_step(small_config, teacher):
    game = make_game(small_config, teacher)  # 3 steps an epoch; calibration 1, warm-up 2
    assert [game.phase(step) for step in (0, 2, 3, 5, 6, 11)] == [
        Phase.CALIBRATE,
        Phase.CALIBRATE,
        Phase.WARMUP,
        Phase.WARMUP,
        Phase.PLAY,
        Phase.PLAY,
    ]


def test_draws_depend_on_seed_and_step_alone(small_config, teacher):
    game = make_game(small_config, teacher)
    state = game.init(small_config, teacher.variables)
    noise, labels = game.draw(state)
    assert noise.shape == (8, 100)
    assert labels.shape == (8,)
    again, _ = game.draw(state.replace(ranges=None, student=None))
    np.testing.assert_array_equal(noise, again)
    for changed in (state.replace(step=jnp.int32(1)), state.replace(seed=jnp.uint32(1))):
        assert not np.allclose(noise, game.draw(changed)[0])


def test_held_out_images_are_drawn_apart(small_config, teacher):
    game = make_game(small_config, teacher)
    state = game.init(small_config, teacher.variables)
    first, labels = game.sample(state, 0, 20)
    second, _ = game.sample(state, 1, 20)
    assert first.shape == (20, 8, 8, 3)
    np.testing.assert_array_equal(np.bincount(labels), [2] * 10)
    assert not np.allclose(first, second)
