"""The rules of a game, and one step of it, which trains both players on one batch of images.

An image's way through one step: noise and labels are drawn (`draw`), the generator G makes images
of them, teacher P and student Q judge the images, and from their logits and P's BatchNorm
statistics come two losses. G descends L_G through both networks; Q descends L_Q on the same images.

Q may learn from procedural images besides (`procedural.py`), or from those of a user in the place
of some (`given.py`), some of them cut together with G's (`cutmix.py`), of which G learns nothing;
and its ranges, of activations and kernels, may be learned like its other parameters. All of this is
off in the paper's methods.

Q's parameters do not change between the two updates, so one forward pass of Q serves both: two
cotangents are pulled back through the same linearization.

`step` and what it calls run inside a mapped axis `data` that holds one slice of the batch per
device. What the networks make of the slices is gathered once; every device computes the same losses
of the whole batch, but pulls back only what they say of its own slice. The parameters' gradient is
then the sum over the devices (`sum_gradients`); of the generator's BatchNorms, which normalise by
the whole batch, the gathering of moments has been pulled back over the devices by then.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from adadfq_jax.devices.pmap import DATA_AXIS
from adadfq_jax.game import cutmix, given, losses, optimizers, procedural
from adadfq_jax.game.learned_ranges import (
    current_ranges,
    learned_ends,
    mean_width,
    with_kernel_ranges,
)
from adadfq_jax.game.methods import METHODS
from adadfq_jax.game.rules import Rules
from adadfq_jax.game.state import GameState, Phase, Player, Responses
from adadfq_jax.models import registry
from adadfq_jax.models.generator import LATENT_SIZE, Generator, linearize
from adadfq_jax.models.layers import (
    PRECISIONS,
    Calibration,
    apply_with_moments,
    input_shape,
    stored_statistics,
)
from adadfq_jax.models.sums import with_quantized_sums
from adadfq_jax.models.tracing import with_roles
from adadfq_jax.ops.gradients import sum_gradients
from adadfq_jax.ops.moments import unite_moments
from adadfq_jax.ops.packing import norm
from adadfq_jax.quantization.bits import assign_bits, with_symmetric_weights

# Independent streams of random numbers from one seed.
_INITIALIZATION, _DRAWS, _HELD_OUT, _PROCEDURAL, _CUTMIX, _GIVEN, _PLACES = range(7)


@dataclasses.dataclass(frozen=True)
class Game:
    """The networks and the rules of both players' step. Immutable; holds no arrays.

    Games of equal networks and rules are equal, whatever their seeds and bit-widths, and share one
    compiled step.

    Attributes:
      network: module of teacher and student.
      generator: module of G.
      rules: constants of the step.
      normalisation: (mean, std) by channel that the teacher expects, of pixels in [0, 1].
    """

    network: nn.Module
    generator: Generator
    rules: Rules
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]

    @classmethod
    def create(
        cls, config: ml_collections.ConfigDict, network: nn.Module, image_size: int
    ) -> "Game":
        """Builds the game of a configuration.

        Args:
          config: the run's whole configuration.
          network: module of teacher and student, from `registry.build`.
          image_size: side of their images in pixels.
        """
        *_, channels = input_shape(network, image_size)
        if config.quant.sums:
            network = with_quantized_sums(network, image_size)
        return cls(
            network=network.clone(
                calibration=Calibration(config.quant.ranges, DATA_AXIS), remat=config.remat
            ),
            generator=Generator(
                image_size,
                network.classes,
                config.generator.conditioning,
                channels,
                dtype=PRECISIONS[config.precision.generator],
                remat=config.remat,
                axis_name=DATA_AXIS,
            ),
            rules=Rules.of(config),
            normalisation=(tuple(config.data.mean), tuple(config.data.std)),
        )

    @property
    def given_shape(self) -> tuple[int, ...] | None:
        """Shape of the given images, which are uint8 (M, H, W, channels); None without any."""
        size, count = self.generator.image_size, self.rules.samples.images_count
        return (count, size, size, self.generator.channels) if count else None

    @property
    def generator_optimizer(self) -> optax.GradientTransformation:
        """G's optimizer, without a learning rate."""
        return optimizers.generator_optimizer(self.rules.generator)

    @property
    def student_optimizer(self) -> optax.GradientTransformation:
        """Q's optimizer, without a learning rate."""
        return optimizers.student_optimizer(self.rules.student)

    @property
    def student_module(self) -> nn.Module:
        """The module of Q outside of the game; P's too, unless `quant.sums` adds quantizers."""
        return self.network.clone(calibration=Calibration(), remat=False)

    def phase(self, step: int) -> Phase:
        """Returns the phase of the step with this index, counted from 0."""
        epoch = step // self.rules.steps_per_epoch
        if epoch < self.rules.calibration_epochs:
            return Phase.CALIBRATE
        return Phase.WARMUP if epoch < self.rules.warmup_epochs else Phase.PLAY

    def init(self, config: ml_collections.ConfigDict, teacher_variables: Any) -> GameState:
        """Returns the state before the first step: Q is P, G is random, ranges are unset.

        Args:
          config: the run's configuration; its seed and bit-widths are used.
          teacher_variables: P's `params` and `batch_stats`.

        Raises:
          ConfigError: an override of the bit-widths matches no layer.
        """
        bits = self.student_bits(config)
        shapes = registry.initial_variables(self.student_module, self.generator.image_size)
        quant = config.quant
        key = jax.random.fold_in(jax.random.key(config.seed), _INITIALIZATION)
        generator_params = _initialize(self.generator.clone(axis_name=None), key)
        params = jax.tree.map(jnp.asarray, teacher_variables["params"])
        ranges = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"])
        learnt = {"params": params}
        if self.rules.learned_ranges:
            ranges = with_kernel_ranges(ranges, params, bits, quant.ranges)
            learnt["clipping"] = learned_ends(ranges)
        return GameState(
            step=jnp.int32(0),
            seed=jnp.uint32(config.seed),
            generator=Player(generator_params, self.generator_optimizer.init(generator_params)),
            student=Player(learnt, self.student_optimizer.init(learnt)),
            ranges=ranges,
            bits=bits,
        )

    def student_bits(self, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """Returns Q's collection `bits`, int32 by layer, as a run's configuration has it.

        Raises:
          ConfigError: an override of the bit-widths matches no layer, or a width cannot be used.
        """
        shapes = registry.initial_variables(self.student_module, self.generator.image_size)
        quant = config.quant
        overrides = with_roles(quant.overrides, self.network, self.generator.image_size)
        bits = assign_bits(shapes["bits"], quant.weight_bits, quant.activation_bits, overrides)
        return with_symmetric_weights(bits) if quant.symmetric_weights else bits

    def student_variables(self, state: GameState, teacher_variables: Any) -> dict[str, Any]:
        """Returns Q's collections `params`, `batch_stats`, `bits` and `ranges` in a state."""
        return {
            "params": state.student.params["params"],
            "batch_stats": teacher_variables["batch_stats"],
            "bits": state.bits,
            "ranges": current_ranges(state.ranges, state.student),
        }

    def sample(self, state: GameState, index: int, count: int) -> tuple[jax.Array, jax.Array]:
        """Makes held-out images, from noise that no step uses. Runs outside the mapped axis.

        Args:
          state: the state, arrays without a device axis.
          index: number of the batch; the same index gives the same noise and labels.
          count: number of images N.

        Returns:
          (images (N, H, W, channels), labels (N,)). Labels run through the classes in turn;
          each batch goes on where the batch before it ended.
        """
        generator = self.generator.clone(axis_name=None)
        return _sample(generator, count, state.generator.params, state.seed, np.uint32(index))

    def draw(self, state: GameState) -> tuple[jax.Array, jax.Array]:
        """Draws z ~ N(0, I) of (B, 100) and y of (B,), uniform, for the whole batch of a step."""
        noise_key, label_key = jax.random.split(_step_key(state, _DRAWS))
        batch = self.rules.batch_size
        noise = jax.random.normal(noise_key, (batch, LATENT_SIZE))
        return noise, jax.random.randint(label_key, (batch,), 0, self.generator.classes)

    def extra_images(
        self,
        state: GameState,
        generated: jax.Array,
        device_index: jax.Array,
        phase: Phase,
        images: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Makes this device's share of the images from which only Q learns.

        Args:
          state: the state before the step.
          generated: G's images on this device, (B / devices, H, W, channels).
          device_index: which slice of the batch is this device's, int32 scalar.
          phase: what the step trains.
          images: the given images, of `given_shape`; None without any.

        Returns:
          Normalised images (N, H, W, channels) of each kind; none in the warm-up, where Q does not
          change.
        """
        samples = self.rules.samples
        if not samples.procedural or phase is Phase.WARMUP:
            return []
        # A procedural image is drawn on the device of the generated image that it may be cut with.
        share = generated.shape[0] * samples.procedural
        indices = device_index * share + jnp.arange(share)
        drawn = self._drawn(state, indices, images)
        if samples.cutmix:
            others = jnp.repeat(jax.lax.stop_gradient(generated), samples.procedural, axis=0)
            key = _step_key(state, _CUTMIX)
            drawn = cutmix.cut_together(key, indices, drawn, others, samples.cutmix)
        return [drawn]

    def _drawn(self, state: GameState, indices: jax.Array, images: jax.Array | None) -> jax.Array:
        """Returns procedural images, and given ones in the place of a share of them."""
        share = 0 if images is None else self.rules.samples.images_share
        if share < 1:
            key = _step_key(state, _PROCEDURAL)
            drawn = procedural.draw(key, indices, self.generator.image_size, *self.normalisation)
        if not share:
            return drawn
        own = given.draw(_step_key(state, _GIVEN), indices, images, *self.normalisation)
        if share == 1:
            return own
        return given.put_in_place(_step_key(state, _PLACES), indices, drawn, own, share)

    def step(
        self,
        state: GameState,
        teacher_variables: Any,
        device_index: jax.Array,
        phase: Phase,
        given_images: jax.Array | None = None,
    ) -> tuple[GameState, dict[str, jax.Array]]:
        """Takes one step on this device's slice of the batch.

        Args:
          state: the state before the step, the same on every device.
          teacher_variables: P's `params` and `batch_stats`.
          device_index: which slice of the batch is this device's, int32 scalar.
          phase: what the step trains; a constant of compilation.
          given_images: uint8, of `given_shape`; None without any. Only Q sees them.

        Returns:
          (the state after the step, metrics). Metrics are scalars, the same on every device. They
          describe the state before the step; only `range_width` is that of the ranges after it.
        """
        noise, labels = self.draw(state)
        share = noise.shape[0] // jax.lax.axis_size(DATA_AXIS)
        own = jax.lax.dynamic_slice_in_dim(noise, device_index * share, share)
        own_labels = jax.lax.dynamic_slice_in_dim(labels, device_index * share, share)

        # Forward: one linearization each of G, P and Q.
        images, pull_generator = linearize(self.generator, state.generator.params, own, own_labels)
        (teacher_logits, moments), pull_teacher = jax.vjp(
            lambda images: self.run_teacher(teacher_variables, images), images
        )
        student_logits, pull_student, ranges = jax.vjp(
            lambda learnt, images: self._run_student(
                learnt, images, state, teacher_variables, phase
            ),
            state.student.params,
            images,
            has_aux=True,
        )
        # Images from which only Q learns. In calibration, Q's ranges follow G's images first and
        # then these.
        extra, pull_extra = [], []
        for more in self.extra_images(state, images, device_index, phase, given_images):
            before = state.replace(ranges=ranges)
            logits, pull, ranges = self._run_both(more, before, teacher_variables, phase)
            extra.append(logits)
            pull_extra.append(pull)
        responses = _gather(Responses(teacher_logits, student_logits, moments, extra))

        # L_G, back to this device's images through both networks, and on to G.
        (loss_g, metrics), to_responses_g = jax.value_and_grad(self.generator_loss, has_aux=True)(
            responses, labels, stored_statistics(teacher_variables)
        )
        to_own_g = jax.tree.map(lambda leaf: leaf[device_index], to_responses_g)
        # Q's linearization gives gradients by parameters and by images. Here only those by images
        # are used, for L_Q only those by parameters; the compiler drops the others.
        (through_teacher,) = pull_teacher((to_own_g.teacher_logits, to_own_g.moments))
        _, through_student = pull_student(to_own_g.student_logits)
        gradients_g, factors_g = pull_generator(through_teacher + through_student)
        gradients_g = sum_gradients(gradients_g, factors_g, DATA_AXIS)
        generator = _moved(
            state.generator,
            gradients_g,
            self.generator_optimizer,
            self.generator_rate(state.step),
        )

        # L_Q, back to what Q learns through the same linearization.
        loss_q, to_responses_q = jax.value_and_grad(self.student_loss)(responses, labels)
        student, norm_q = state.student, jnp.zeros_like(loss_q)
        if phase is Phase.PLAY:
            to_own_q = jax.tree.map(lambda leaf: leaf[device_index], to_responses_q)
            gradients_q, _ = pull_student(to_own_q.student_logits)
            for pull, (_, to_extra) in zip(pull_extra, to_own_q.extra, strict=True):
                gradients_q = jax.tree.map(jnp.add, gradients_q, pull(to_extra)[0])
            gradients_q = sum_gradients(gradients_q, {}, DATA_AXIS)
            student = _moved(student, gradients_q, self.student_optimizer, self.student_rate(state))
            norm_q = norm(gradients_q["params"])
        elif phase is Phase.CALIBRATE and self.rules.learned_ranges:
            student = student.replace(params=student.params | {"clipping": learned_ends(ranges)})

        metrics |= {
            "l_g": loss_g,
            "l_q": loss_q,
            "range_width": mean_width(current_ranges(ranges, student)),
            "generator_gradient": norm(gradients_g),
            "student_gradient": norm_q,
        }
        new_state = state.replace(
            step=state.step + 1, generator=generator, student=student, ranges=ranges
        )
        return new_state, metrics

    def run_teacher(
        self, teacher_variables: Any, images: jax.Array
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """Returns z_P and the moments of P's BatchNorm inputs, computed in P's precision."""
        images = images.astype(PRECISIONS[self.rules.precision.teacher] or images.dtype)
        return apply_with_moments(self.network, teacher_variables, images)

    def generator_loss(
        self, responses: Responses, labels: jax.Array, stored: list[tuple[jax.Array, jax.Array]]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """L_G of the whole batch: the method's terms + gamma L_BNS, which every method has.

        Args:
          responses: of the whole batch.
          labels: y of the whole batch, (B,).
          stored: P's running (mean, variance), in the order of the responses' moments.

        Returns:
          (L_G, metrics by name: its terms, the mean H' and the agreement), all scalars.
        """
        constants = self.rules.game
        z_p, z_q = responses.logits()
        statistics = [unite_moments(*moments) for moments in responses.moments]
        h_prime = losses.normalized_entropy(z_p, z_q)
        loss, terms = METHODS[constants.method].generator_loss(z_p, z_q, labels, h_prime, constants)
        l_bns = losses.batch_norm_statistics_loss(statistics, stored)
        loss += constants.gamma * l_bns
        return loss, terms | {
            "l_bns": l_bns,
            "h_prime": h_prime.mean(),
            "agreement": jnp.mean(z_p.argmax(-1) == z_q.argmax(-1), dtype=z_p.dtype),
        }

    def student_loss(self, responses: Responses, labels: jax.Array) -> jax.Array:
        """The method's L_Q, of all images that Q learns from; labels y are (B,). A scalar."""
        constants = self.rules.game
        method = METHODS[constants.method]
        return method.student_loss(*responses.all_logits(), labels, constants)

    def generator_rate(self, step: jax.Array) -> jax.Array:
        """Returns G's learning rate at a step, a scalar."""
        return optimizers.falling_schedule(self.rules.generator, self.rules.steps_per_epoch)(step)

    def student_rate(self, state: GameState) -> jax.Array:
        """Returns Q's learning rate in a state, a scalar."""
        fewest_bits = jnp.stack(jax.tree.leaves(state.bits)).min()
        return optimizers.student_schedule(self.rules, fewest_bits)(state.step)

    def _run_student(
        self,
        learnt: Any,
        images: jax.Array,
        state: GameState,
        teacher_variables: Any,
        phase: Phase,
    ):
        """Returns Q's logits and its ranges, which move in calibration only."""
        variables = {
            "batch_stats": teacher_variables["batch_stats"],
            "bits": state.bits,
            "ranges": state.ranges,
        }
        if phase is Phase.CALIBRATE:
            # The ranges are those of the images. Learned ends (`clipping`) are left out: they start
            # where calibration ends.
            variables["params"] = learnt["params"]
            logits, written = self.network.apply(variables, images, mutable=["ranges"])
            return logits, written["ranges"]
        return self.network.apply(variables | learnt, images), state.ranges

    def _run_both(self, images: jax.Array, state: GameState, teacher_variables: Any, phase: Phase):
        """Returns (z_P, z_Q) of extra images, Q's linearization, and Q's ranges afterwards."""
        student_logits, pull, ranges = jax.vjp(
            lambda learnt: self._run_student(learnt, images, state, teacher_variables, phase),
            state.student.params,
            has_aux=True,
        )
        teacher_logits, _ = self.run_teacher(teacher_variables, images)
        return (teacher_logits, student_logits), pull, ranges


def _moved(player: Player, gradients: Any, optimizer, rate: jax.Array) -> Player:
    """Returns the player after one step of its optimizer."""
    updates, opt_state = optimizer.update(gradients, player.opt_state, player.params)
    params = jax.tree.map(lambda p, u: p - (rate * u).astype(p.dtype), player.params, updates)
    return Player(params, opt_state)


@functools.partial(jax.jit, static_argnums=0)
def _initialize(generator: Generator, key: jax.Array) -> Any:
    # The initial values do not depend on the batch.
    noise, labels = jnp.zeros((2, LATENT_SIZE)), jnp.zeros((2,), jnp.int32)
    return generator.init(key, noise, labels)["params"]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample(generator: Generator, count: int, params: Any, seed: jax.Array, index):
    key = jax.random.fold_in(jax.random.key(seed), _HELD_OUT)
    noise = jax.random.normal(jax.random.fold_in(key, index), (count, LATENT_SIZE))
    # A batch goes on where the one before ended, so that every class appears, even if a batch has
    # fewer images than there are classes.
    labels = (index * count + jnp.arange(count)) % generator.classes
    return generator.apply({"params": params}, noise, labels), labels


def _step_key(state: GameState, stream: int) -> jax.Array:
    """Returns the key of a step's draws from one of the independent streams."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), stream), state.step)


def _gather(own: Responses) -> Responses:
    """Gathers the devices' responses along a new axis of slices, in one collective."""
    flat, restore = jax.flatten_util.ravel_pytree(own)
    return jax.vmap(restore)(jax.lax.all_gather(flat, DATA_AXIS))
