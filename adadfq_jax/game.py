"""The game: two players, three phases, and the step that trains both on one batch of images.

An image's way through one step: noise and labels are drawn (`draw`), the generator G makes images
of them, teacher P and student Q judge the images, and from their logits and P's BatchNorm
statistics come two losses. G descends L_G through both networks; Q descends L_Q on the same images.

Q's parameters do not change between the two updates, so one forward pass of Q serves both: two
cotangents are pulled back through the same linearization.

Everything here runs inside a mapped axis `data` that holds one slice of the batch per device. What
the networks make of the slices is gathered once; every device computes the same losses of the whole
batch, but pulls back only what they say of its own slice. The parameters' gradient is then the sum
over the devices.
"""

import dataclasses
import enum
import functools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.flatten_util
import jax.numpy as jnp
import ml_collections
import optax

from adadfq_jax import losses, models
from adadfq_jax.errors import ConfigError
from adadfq_jax.methods import METHODS
from adadfq_jax.models.bits import assign_bits
from adadfq_jax.models.layers import (
    input_moments,
    leaves_by_layer,
    stored_statistics,
    unite_moments,
)
from adadfq_jax.parallel import DATA_AXIS


class Phase(enum.Enum):
    """What a step does: which of the activation ranges and the players move."""

    CALIBRATE = "calibrate"  # ranges follow the generated images; G learns
    WARMUP = "warmup"  # ranges frozen; G learns
    PLAY = "play"  # ranges frozen; both learn


@flax.struct.dataclass
class Player:
    """One player's parameters and the state of its optimizer."""

    params: Any
    opt_state: optax.OptState


@flax.struct.dataclass
class GameState:
    """All that changes, or that a step needs besides the teacher.

    Attributes:
      step: steps taken so far, int32 scalar.
      seed: the seed that all draws derive from, uint32 scalar.
      generator: G.
      student: Q.
      ranges: Q's activation ranges, the `ranges` collection.
      bits: Q's bit-widths, the `bits` collection.
    """

    step: jax.Array
    seed: jax.Array
    generator: Player
    student: Player
    ranges: Any
    bits: Any


@flax.struct.dataclass
class Responses:
    """What teacher and student make of a batch's images, with a leading axis of slices.

    Attributes:
      teacher_logits: z_P, (slices, B / slices, C).
      student_logits: z_Q, same shape.
      moments: (mean, variance) of each of P's BatchNorm inputs over a slice, each
        (slices, channels).
    """

    teacher_logits: jax.Array
    student_logits: jax.Array
    moments: list[tuple[jax.Array, jax.Array]]

    def logits(self) -> tuple[jax.Array, jax.Array]:
        """Returns z_P and z_Q of the whole batch, each (B, C)."""
        return _join(self.teacher_logits), _join(self.student_logits)


# Independent streams of random numbers from one seed.
_INITIALIZATION, _DRAWS, _HELD_OUT = 0, 1, 2

# What the step depends on; bit-widths and seed are data to it, and travel in the state.
_RULES = (
    "batch_size",
    "steps_per_epoch",
    "calibration_epochs",
    "warmup_epochs",
    "game",
    "generator",
    "student",
)


@dataclasses.dataclass(frozen=True)
class Game:
    """The rules: networks, constants, optimizers and schedules. Immutable; holds no arrays.

    Games of equal rules are equal, whatever their seeds and bit-widths, and share one compiled
    step.

    Attributes:
      classifier: module of teacher and student.
      generator: module of G.
      config: the fields of the run's configuration that the step depends on, see `config.py`.
    """

    classifier: nn.Module
    generator: models.Generator
    config: ml_collections.FrozenConfigDict

    @classmethod
    def create(cls, config: ml_collections.ConfigDict, classifier: nn.Module, image_size: int):
        """Sets up the game for a classifier (of `models.build`) and an image size in pixels.

        Raises:
          ConfigError: the generator cannot make images of that size.
        """
        if image_size % 4:
            raise ConfigError(
                f"the teacher takes images of {image_size}x{image_size} pixels, but the generator "
                "makes only sizes that are divisible by 4."
            )
        return cls(
            classifier=classifier.clone(axis_name=DATA_AXIS),
            generator=models.Generator(image_size, classifier.classes, axis_name=DATA_AXIS),
            config=ml_collections.FrozenConfigDict({name: config[name] for name in _RULES}),
        )

    # The players' optimizers. Learning rates are applied in `step`, by the global step, because a
    # counter of its own would start when Q first learns and read the milestones late.

    @property
    def generator_optimizer(self) -> optax.GradientTransformation:
        """Adam without its learning rate."""
        rules = self.config.generator
        return optax.scale_by_adam(b1=rules.beta1, b2=rules.beta2)

    @property
    def student_optimizer(self) -> optax.GradientTransformation:
        """SGD with Nesterov momentum and weight decay on every parameter, without its rate."""
        rules = self.config.student
        return optax.chain(
            optax.add_decayed_weights(rules.weight_decay),
            optax.trace(rules.momentum, nesterov=True),
        )

    def phase(self, step: int) -> Phase:
        """Returns the phase of the step with this index, counted from 0."""
        epoch = step // self.config.steps_per_epoch
        if epoch < self.config.calibration_epochs:
            return Phase.CALIBRATE
        return Phase.WARMUP if epoch < self.config.warmup_epochs else Phase.PLAY

    def init(self, config: ml_collections.ConfigDict, teacher: Any) -> GameState:
        """Returns the state before the first step: Q is P, G is random, ranges are unset.

        Args:
          config: the run's configuration; its seed and bit-widths are used.
          teacher: P's `params` and `batch_stats`.

        Raises:
          ConfigError: an override of the bit-widths matches no layer.
        """
        shapes = models.initial_variables(
            self.classifier.clone(axis_name=None), self.generator.image_size
        )
        quant = config.quant
        bits = assign_bits(
            shapes["bits"], quant.weight_bits, quant.activation_bits, quant.overrides
        )
        key = jax.random.fold_in(jax.random.key(config.seed), _INITIALIZATION)
        generator_params = _initialize(self.generator.clone(axis_name=None), key)
        student_params = jax.tree.map(jnp.asarray, teacher["params"])
        return GameState(
            step=jnp.int32(0),
            seed=jnp.uint32(config.seed),
            generator=Player(generator_params, self.generator_optimizer.init(generator_params)),
            student=Player(student_params, self.student_optimizer.init(student_params)),
            ranges=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"]),
            bits=bits,
        )

    def sample(self, state: GameState, index: int, count: int) -> tuple[jax.Array, jax.Array]:
        """Makes held-out images: from draws that no step uses, outside the mapped axis.

        Args:
          state: the state, arrays without a device axis.
          index: which batch; the same index gives the same noise and labels.
          count: how many images N.

        Returns:
          (images (N, H, W, 3), labels (N,)), the classes in turn.
        """
        return _sample(self.generator.clone(axis_name=None), count, state, jnp.uint32(index))

    def draw(self, state: GameState) -> tuple[jax.Array, jax.Array]:
        """Draws z ~ N(0, I) of (B, 100) and y of (B,), uniform, for the whole batch of a step."""
        key = jax.random.fold_in(jax.random.key(state.seed), _DRAWS)
        noise_key, label_key = jax.random.split(jax.random.fold_in(key, state.step))
        batch = self.config.batch_size
        noise = jax.random.normal(noise_key, (batch, models.LATENT_SIZE))
        return noise, jax.random.randint(label_key, (batch,), 0, self.generator.classes)

    def step(
        self, state: GameState, teacher: Any, device_index: jax.Array, phase: Phase
    ) -> tuple[GameState, dict[str, jax.Array]]:
        """Plays one step on this device's slice of the batch.

        Args:
          state: the state before the step, the same on every device.
          teacher: P's `params` and `batch_stats`.
          device_index: which slice of the batch is this device's, int32 scalar.
          phase: what the step does; a constant of compilation.

        Returns:
          (the state after it, metrics): scalars, the same on every device, of the state before the
          step, but for `range_width`, which is of the ranges after it.
        """
        noise, labels = self.draw(state)
        share = noise.shape[0] // jax.lax.axis_size(DATA_AXIS)
        own = jax.lax.dynamic_slice_in_dim(noise, device_index * share, share)
        own_labels = jax.lax.dynamic_slice_in_dim(labels, device_index * share, share)
        player_g, player_q = state.generator, state.student

        # Forward: one linearization each of G, P and Q.
        images, pull_generator = jax.vjp(
            lambda params: self.generator.apply({"params": params}, own, own_labels),
            player_g.params,
        )
        (teacher_logits, moments), pull_teacher = jax.vjp(
            lambda images: self._run_teacher(teacher, images), images
        )
        student_logits, pull_student, ranges = jax.vjp(
            lambda params, images: self._run_student(params, images, state, teacher, phase),
            player_q.params,
            images,
            has_aux=True,
        )
        responses = _gather(Responses(teacher_logits, student_logits, moments))

        # L_G, back to this device's images through both networks, and on to G.
        (loss_g, metrics), to_responses = jax.value_and_grad(self.generator_loss, has_aux=True)(
            responses, labels, stored_statistics(teacher)
        )
        to_own = jax.tree.map(lambda leaf: leaf[device_index], to_responses)
        (through_teacher,) = pull_teacher((to_own.teacher_logits, to_own.moments))
        _, through_student = pull_student(to_own.student_logits)
        (gradients_g,) = pull_generator(through_teacher + through_student)
        generator, norm_g = self._update(
            player_g, gradients_g, self.generator_optimizer, self.config.generator, state.step
        )

        # L_Q, back to Q's parameters through the same linearization.
        loss_q, to_responses = jax.value_and_grad(self.student_loss)(responses, labels)
        student, norm_q = player_q, jnp.zeros_like(loss_q)
        if phase is Phase.PLAY:
            gradients_q, _ = pull_student(to_responses.student_logits[device_index])
            student, norm_q = self._update(
                player_q, gradients_q, self.student_optimizer, self.config.student, state.step
            )

        metrics |= {
            "l_g": loss_g,
            "l_q": loss_q,
            "range_width": _mean_width(ranges),
            "generator_gradient": norm_g,
            "student_gradient": norm_q,
        }
        new_state = state.replace(
            step=state.step + 1, generator=generator, student=student, ranges=ranges
        )
        return new_state, metrics

    def generator_loss(
        self, responses: Responses, labels: jax.Array, stored: list[tuple[jax.Array, jax.Array]]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """L_G of the whole batch: the method's own terms + gamma L_BNS, which all share.

        Args:
          responses: of the whole batch.
          labels: y of the whole batch, (B,).
          stored: P's running (mean, variance), in the order of the responses' moments.

        Returns:
          (L_G, its terms and what else describes the batch), all scalars.
        """
        rules = self.config.game
        z_p, z_q = responses.logits()
        statistics = [unite_moments(*moments) for moments in responses.moments]
        h_prime = losses.normalized_entropy(z_p, z_q)
        loss, terms = METHODS[rules.method].generator_loss(z_p, z_q, labels, h_prime, rules)
        l_bns = losses.batch_norm_statistics_loss(statistics, stored)
        loss += rules.gamma * l_bns
        return loss, terms | {
            "l_bns": l_bns,
            "h_prime": h_prime.mean(),
            "agreement": jnp.mean(z_p.argmax(-1) == z_q.argmax(-1), dtype=z_p.dtype),
        }

    def student_loss(self, responses: Responses, labels: jax.Array) -> jax.Array:
        """L_Q of the whole batch, as the method has it; labels y are (B,)."""
        rules = self.config.game
        return METHODS[rules.method].student_loss(*responses.logits(), labels, rules)

    def _run_teacher(self, teacher: Any, images: jax.Array):
        """Returns P's logits and, per BatchNorm layer, the moments of its input."""
        logits, written = self.classifier.apply(teacher, images, mutable=["statistics"])
        return logits, input_moments(written["statistics"])

    def _run_student(
        self, params: Any, images: jax.Array, state: GameState, teacher: Any, phase: Phase
    ):
        """Returns Q's logits and its ranges, which move in calibration only."""
        variables = {
            "params": params,
            "batch_stats": teacher["batch_stats"],
            "bits": state.bits,
            "ranges": state.ranges,
        }
        if phase is Phase.CALIBRATE:
            logits, written = self.classifier.apply(variables, images, mutable=["ranges"])
            return logits, written["ranges"]
        return self.classifier.apply(variables, images), state.ranges

    def _update(self, player: Player, gradients: Any, optimizer, rules, step: jax.Array):
        """Returns the player after one step of its optimizer, and its gradient's norm."""
        gradients = jax.lax.psum(gradients, DATA_AXIS)
        updates, opt_state = optimizer.update(gradients, player.opt_state, player.params)
        rate = learning_rate(rules, self.config.steps_per_epoch)(step)
        params = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), player.params, updates)
        return Player(params, opt_state), _norm(gradients)


@functools.partial(jax.jit, static_argnums=0)
def _initialize(generator: models.Generator, key: jax.Array) -> Any:
    # The initial values do not depend on the batch.
    noise, labels = jnp.zeros((2, models.LATENT_SIZE)), jnp.zeros((2,), jnp.int32)
    return generator.init(key, noise, labels)["params"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(generator: models.Generator, count: int, state: GameState, index: jax.Array):
    key = jax.random.fold_in(jax.random.key(state.seed), _HELD_OUT)
    noise = jax.random.normal(jax.random.fold_in(key, index), (count, models.LATENT_SIZE))
    labels = jnp.arange(count) % generator.classes
    return generator.apply({"params": state.generator.params}, noise, labels), labels


def learning_rate(rules: ml_collections.FrozenConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Returns the learning rate by global step: times `decay` at each milestone, in epochs."""
    return optax.piecewise_constant_schedule(
        rules.learning_rate,
        {milestone * steps_per_epoch: rules.decay for milestone in rules.milestones},
    )


def _norm(tree: Any) -> jax.Array:
    # Channel by channel: XLA's CPU backend is slow where it sums a large array to one number.
    return optax.tree.norm(
        [
            jnp.linalg.norm(leaf.reshape(-1, leaf.shape[-1]), axis=0)
            for leaf in jax.tree.leaves(tree)
        ]
    )


def _mean_width(ranges: Any) -> jax.Array:
    """Returns the mean width of the activation ranges, over the layers."""
    widths = leaves_by_layer(ranges, lambda layer: layer["maximum"] - layer["minimum"])
    return jnp.stack(widths).mean()


def _gather(own: Responses) -> Responses:
    """Collects the devices' slices, given without their axis, in one collective."""
    flat, restore = jax.flatten_util.ravel_pytree(own)
    return jax.vmap(restore)(jax.lax.all_gather(flat, DATA_AXIS))


def _join(slices: jax.Array) -> jax.Array:
    return slices.reshape(-1, slices.shape[-1])
