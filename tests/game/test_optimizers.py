"""How far a step goes: rates by global step, and steps relative to what they change."""

import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax.config.fields import default_config
from adadfq_jax.game import optimizers


def make_config(**student):
    config = default_config().copy_and_resolve_references()
    config.steps_per_epoch, config.warmup_epochs, config.epochs = 10, 2, 12
    config.student.update(student)
    return config


def test_a_falling_rate_counts_global_epochs():
    """Epoch e, from 0, has decayed once for every milestone below e + 1 (method of the paper)."""
    rules = make_config(learning_rate=1.0, milestones=(2, 3), decay=0.1, optimizer="sgd").student
    rate = optimizers.falling_schedule(rules, steps_per_epoch=10)
    rates = [float(rate(step)) for step in (0, 19, 20, 29, 30, 99)]
    np.testing.assert_allclose(rates, [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_adams_rate_rises_and_falls_with_the_play():
    rate = optimizers.student_schedule(
        make_config(optimizer="adam", relative_rate=0.5), jnp.int32(3)
    )
    first, last = 20, 120  # of 100 steps of play, five rise
    np.testing.assert_allclose([rate(0), rate(first)], 0)
    np.testing.assert_allclose(rate(first + 5), 0.5)
    np.testing.assert_allclose(rate(first + 5 + 95 // 2), 0.25, rtol=0.02)
    np.testing.assert_allclose(rate(last), 0, atol=1e-7)
    rates = [float(rate(step)) for step in range(first, last)]
    assert np.argmax(rates) == 5


def test_adams_rate_falls_with_the_steps_of_the_quantizers():
    def highest(bits):
        config = make_config(optimizer="adam", relative_rate=0.5)
        return float(optimizers.student_schedule(config, jnp.int32(bits))(25))

    # 7, 15 and 255 steps; a student of fewer than three bits learns no faster than one of three.
    found = [highest(bits) for bits in (1, 2, 3, 4, 8)]
    np.testing.assert_allclose(found, [0.5, 0.5, 0.5, 0.5 * 7 / 15, 0.5 * 7 / 255], rtol=1e-6)


def test_adams_steps_are_relative_to_each_tensor():
    """Of tensors a thousand times larger, whatever their gradients, a step is as much larger."""
    optimizer = optimizers.student_optimizer(make_config(optimizer="adam").student)
    tensors = {"kernel": jnp.array([[0.1, -0.3], [0.2, 0.4]]), "maximum": jnp.array(2.0)}
    gradients = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "maximum": jnp.array(-4.0)}

    def step(scale, of_gradients):
        params = jax.tree.map(lambda leaf: scale * leaf, tensors)
        state = optimizer.init(params)
        scaled = jax.tree.map(lambda leaf: of_gradients * leaf, gradients)
        return optimizer.update(scaled, state, params)[0]

    once, large = step(1, 1), step(1000, 0.01)
    for name, update in once.items():
        np.testing.assert_allclose(large[name], 1000 * update, rtol=1e-4)
    # Adam's first step is the gradient's sign.
    np.testing.assert_allclose(once["maximum"], -2.0, rtol=1e-5)
    size = np.sqrt(np.mean(np.square(tensors["kernel"])))
    np.testing.assert_allclose(once["kernel"], size * np.sign(gradients["kernel"]), rtol=1e-5)


def test_sgd_is_the_papers():
    """Nesterov momentum, weight decay added to the gradient: two steps in plain NumPy."""
    rules = make_config(optimizer="sgd", momentum=0.9, weight_decay=0.1).student
    optimizer = optimizers.student_optimizer(rules)
    params, state, trace, ours = np.array([1.0, -2.0]), None, np.zeros(2), jnp.array([1.0, -2.0])
    state = optimizer.init(ours)
    for gradient in (np.array([0.5, 1.0]), np.array([-1.0, 0.25])):
        update, state = optimizer.update(jnp.asarray(gradient), state, ours)
        decayed = gradient + 0.1 * params
        trace = 0.9 * trace + decayed
        np.testing.assert_allclose(update, decayed + 0.9 * trace, rtol=1e-6)
