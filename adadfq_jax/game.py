"""The game: two players, three phases, and the step that trains both on one batch of images.

An image's way through one step: noise and labels are drawn (`draw`), the generator G makes images
of them, teacher P and student Q judge the images, and from their logits and P's BatchNorm
statistics come two losses. G descends L_G through both networks; Q descends L_Q on the same images.

Q may learn from procedural images besides (`procedural.py`), some of them cut together with G's
(`cutmix.py`), of which G learns nothing; and its ranges, of activations and kernels, may be learned
like its other parameters. Both are off in the paper's methods.

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

from adadfq_jax import cutmix, losses, models, optimizers, procedural, quantizers
from adadfq_jax.errors import ConfigError
from adadfq_jax.methods import METHODS
from adadfq_jax.models.bits import assign_bits
from adadfq_jax.models.layers import (
    PRECISIONS,
    Calibration,
    apply_with_moments,
    leaves_by_layer,
    stored_statistics,
    unite_moments,
)
from adadfq_jax.parallel import DATA_AXIS


class Phase(enum.Enum):
    """What a step does: which of the activation ranges and the players move."""

    CALIBRATE = "calibrate"  # activation ranges follow the images that Q sees; G learns
    WARMUP = "warmup"  # ranges frozen; G learns
    PLAY = "play"  # ranges frozen, unless they are learned like Q's other parameters; both learn


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
      range_opt_state: of the optimizer of the ranges, where these are learned; else None.
    """

    step: jax.Array
    seed: jax.Array
    generator: Player
    student: Player
    ranges: Any
    bits: Any
    range_opt_state: optax.OptState | None = None


@flax.struct.dataclass
class Responses:
    """What teacher and student make of a batch's images, with a leading axis of slices.

    Attributes:
      teacher_logits: z_P, (slices, B / slices, C).
      student_logits: z_Q, same shape.
      moments: (mean, variance) of each of P's BatchNorm inputs over a slice, each
        (slices, channels).
      extra: z_P and z_Q of images that Q alone learns from, a pair for each kind; (slices, N, C).
    """

    teacher_logits: jax.Array
    student_logits: jax.Array
    moments: list[tuple[jax.Array, jax.Array]]
    extra: list[tuple[jax.Array, jax.Array]]

    def logits(self) -> tuple[jax.Array, jax.Array]:
        """Returns z_P and z_Q of G's images, each (B, C)."""
        return _join(self.teacher_logits), _join(self.student_logits)

    def all_logits(self) -> tuple[jax.Array, jax.Array]:
        """Returns z_P and z_Q of all images that Q learns from, each (>= B, C)."""
        kinds = [(self.teacher_logits, self.student_logits), *self.extra]
        z_p, z_q = ([_join(logits) for logits in each] for each in zip(*kinds, strict=True))
        return jnp.concatenate(z_p), jnp.concatenate(z_q)


# Independent streams of random numbers from one seed.
_INITIALIZATION, _DRAWS, _HELD_OUT, _PROCEDURAL, _CUTMIX = 0, 1, 2, 3, 4

# What the step depends on; bit-widths and seed are data to it, and travel in the state.
_RULES = (
    "batch_size",
    "steps_per_epoch",
    "calibration_epochs",
    "warmup_epochs",
    "game",
    "generator",
    "student",
    "samples",
    "precision",
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
      normalisation: (mean, std) of the teacher's input by channel, of pixels in [0, 1].
    """

    classifier: nn.Module
    generator: models.Generator
    config: ml_collections.FrozenConfigDict
    normalisation: tuple[tuple[float, ...], tuple[float, ...]]

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
        rules = {name: config[name] for name in _RULES}
        rules["learned_ranges"] = config.quant.learned_ranges
        if config.student.optimizer != "sgd":  # its rate depends on how long the game will be
            rules["epochs"] = config.epochs
        return cls(
            classifier=classifier.clone(
                calibration=Calibration(config.quant.ranges, DATA_AXIS), remat=config.remat
            ),
            generator=models.Generator(
                image_size,
                classifier.classes,
                conditioning=config.generator.conditioning,
                dtype=PRECISIONS[config.precision.generator],
                remat=config.remat,
                axis_name=DATA_AXIS,
            ),
            config=ml_collections.FrozenConfigDict(rules),
            normalisation=(tuple(config.data.mean), tuple(config.data.std)),
        )

    @property
    def generator_optimizer(self) -> optax.GradientTransformation:
        """G's, without its rate."""
        return optimizers.generator_optimizer(self.config.generator)

    @property
    def student_optimizer(self) -> optax.GradientTransformation:
        """Q's, without its rate."""
        return optimizers.student_optimizer(self.config.student)

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
            self.classifier.clone(calibration=Calibration()), self.generator.image_size
        )
        quant = config.quant
        bits = assign_bits(
            shapes["bits"], quant.weight_bits, quant.activation_bits, quant.overrides
        )
        key = jax.random.fold_in(jax.random.key(config.seed), _INITIALIZATION)
        generator_params = _initialize(self.generator.clone(axis_name=None), key)
        student_params = jax.tree.map(jnp.asarray, teacher["params"])
        ranges = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes["ranges"])
        learned = self.config.learned_ranges
        if learned:
            ranges = _with_kernel_ranges(ranges, student_params, bits, quant.ranges)
        return GameState(
            step=jnp.int32(0),
            seed=jnp.uint32(config.seed),
            generator=Player(generator_params, self.generator_optimizer.init(generator_params)),
            student=Player(student_params, self.student_optimizer.init(student_params)),
            ranges=ranges,
            bits=bits,
            range_opt_state=self.student_optimizer.init(_ends(ranges)) if learned else None,
        )

    def sample(self, state: GameState, index: int, count: int) -> tuple[jax.Array, jax.Array]:
        """Makes held-out images: from draws that no step uses, outside the mapped axis.

        Args:
          state: the state, arrays without a device axis.
          index: which batch; the same index gives the same noise and labels.
          count: how many images N.

        Returns:
          (images (N, H, W, 3), labels (N,)), the classes in turn, from one batch to the next.
        """
        return _sample(self.generator.clone(axis_name=None), count, state, jnp.uint32(index))

    def draw(self, state: GameState) -> tuple[jax.Array, jax.Array]:
        """Draws z ~ N(0, I) of (B, 100) and y of (B,), uniform, for the whole batch of a step."""
        noise_key, label_key = jax.random.split(_step_key(state, _DRAWS))
        batch = self.config.batch_size
        noise = jax.random.normal(noise_key, (batch, models.LATENT_SIZE))
        return noise, jax.random.randint(label_key, (batch,), 0, self.generator.classes)

    def extra_images(
        self, state: GameState, generated: jax.Array, device_index: jax.Array, phase: Phase
    ) -> list[jax.Array]:
        """Makes this device's share of the images that Q alone learns from.

        Args:
          state: the state before the step.
          generated: G's images of this device, (B / devices, H, W, 3).
          device_index: which slice of the batch is this device's, int32 scalar.
          phase: what the step does.

        Returns:
          Normalised images (N, H, W, 3) for each kind; in the warm-up, where Q rests, none.
        """
        samples = self.config.samples
        if not samples.procedural or phase is Phase.WARMUP:
            return []
        # Those that may be cut together with one of G's images lie beside it, on its device.
        share = generated.shape[0] * samples.procedural
        indices = device_index * share + jnp.arange(share)
        key = _step_key(state, _PROCEDURAL)
        drawn = procedural.draw(key, indices, self.generator.image_size, *self.normalisation)
        if samples.cutmix:
            others = jnp.repeat(jax.lax.stop_gradient(generated), samples.procedural, axis=0)
            key = _step_key(state, _CUTMIX)
            drawn = cutmix.cut_together(key, indices, drawn, others, samples.cutmix)
        return [drawn]

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
            lambda images: self.ask_teacher(teacher, images), images
        )
        trained = self.trained(state)
        student_logits, pull_student, ranges = jax.vjp(
            lambda trained, images: self._run_student(trained, images, state, teacher, phase),
            trained,
            images,
            has_aux=True,
        )
        # What Q alone learns from; in calibration its ranges follow one kind after the other.
        extra, pull_extra = [], []
        for more in self.extra_images(state, images, device_index, phase):
            logits, pull, ranges = self._show(more, state.replace(ranges=ranges), teacher, phase)
            extra.append(logits)
            pull_extra.append(pull)
        responses = _gather(Responses(teacher_logits, student_logits, moments, extra))

        # L_G, back to this device's images through both networks, and on to G.
        (loss_g, metrics), to_responses_g = jax.value_and_grad(self.generator_loss, has_aux=True)(
            responses, labels, stored_statistics(teacher)
        )
        to_own_g = jax.tree.map(lambda leaf: leaf[device_index], to_responses_g)
        (through_teacher,) = pull_teacher((to_own_g.teacher_logits, to_own_g.moments))
        _, through_student = pull_student(to_own_g.student_logits)
        (gradients_g,) = pull_generator(through_teacher + through_student)
        generator, norm_g = self._update(
            player_g, gradients_g, self.generator_optimizer, self.generator_rate(state.step)
        )

        # L_Q, back to Q's parameters through the same linearization.
        loss_q, to_responses_q = jax.value_and_grad(self.student_loss)(responses, labels)
        student, norm_q = player_q, jnp.zeros_like(loss_q)
        range_opt_state = state.range_opt_state
        if phase is Phase.PLAY:
            to_own_q = jax.tree.map(lambda leaf: leaf[device_index], to_responses_q)
            gradients, _ = pull_student(to_own_q.student_logits)
            for pull, (_, to_extra) in zip(pull_extra, to_own_q.extra, strict=True):
                gradients = jax.tree.map(jnp.add, gradients, pull(to_extra)[0])
            rate = self.student_rate(state)
            student, norm_q = self._update(
                player_q, gradients["params"], self.student_optimizer, rate
            )
            # Apart, so that the state of a game without learned ranges has no place for it.
            if self.config.learned_ranges:
                ends, _ = self._update(
                    Player(trained["clipping"], state.range_opt_state),
                    gradients["clipping"],
                    self.student_optimizer,
                    rate,
                )
                ranges, range_opt_state = _with_ends(ranges, ends.params), ends.opt_state

        metrics |= {
            "l_g": loss_g,
            "l_q": loss_q,
            "range_width": _mean_width(ranges),
            "generator_gradient": norm_g,
            "student_gradient": norm_q,
        }
        new_state = state.replace(
            step=state.step + 1,
            generator=generator,
            student=student,
            ranges=ranges,
            range_opt_state=range_opt_state,
        )
        return new_state, metrics

    def ask_teacher(
        self, teacher: Any, images: jax.Array
    ) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
        """Returns z_P and the moments of P's BatchNorm inputs, computed in P's precision."""
        images = images.astype(PRECISIONS[self.config.precision.teacher] or images.dtype)
        return apply_with_moments(self.classifier, teacher, images)

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
        """L_Q of all images that Q learns from, as the method has it; labels y are (B,)."""
        rules = self.config.game
        return METHODS[rules.method].student_loss(*responses.all_logits(), labels, rules)

    def trained(self, state: GameState) -> dict[str, Any]:
        """Returns the collections that Q learns: `params` and, with learned ranges, `clipping`."""
        trained = {"params": state.student.params}
        return trained | ({"clipping": _ends(state.ranges)} if self.config.learned_ranges else {})

    def generator_rate(self, step: jax.Array) -> jax.Array:
        """Returns G's learning rate."""
        return optimizers.falling_rate(self.config.generator, self.config.steps_per_epoch)(step)

    def student_rate(self, state: GameState) -> jax.Array:
        """Returns Q's learning rate."""
        fewest_bits = jnp.stack(jax.tree.leaves(state.bits)).min()
        return optimizers.student_rate(self.config, fewest_bits)(state.step)

    def _run_student(
        self, trained: Any, images: jax.Array, state: GameState, teacher: Any, phase: Phase
    ):
        """Returns Q's logits and its ranges, which move in calibration only."""
        variables = {
            "batch_stats": teacher["batch_stats"],
            "bits": state.bits,
            "ranges": state.ranges,
        }
        if phase is Phase.CALIBRATE:
            variables["params"] = trained["params"]
            logits, written = self.classifier.apply(variables, images, mutable=["ranges"])
            return logits, written["ranges"]
        return self.classifier.apply(variables | trained, images), state.ranges

    def _show(self, images: jax.Array, state: GameState, teacher: Any, phase: Phase):
        """Returns P's and Q's logits of extra images, Q's linearization and its ranges after it."""
        student_logits, pull, ranges = jax.vjp(
            lambda trained: self._run_student(trained, images, state, teacher, phase),
            self.trained(state),
            has_aux=True,
        )
        teacher_logits, _ = self.ask_teacher(teacher, images)
        return (teacher_logits, student_logits), pull, ranges

    def _update(self, player: Player, gradients: Any, optimizer, rate: jax.Array):
        """Returns the player after one step of its optimizer, and its gradient's norm."""
        own = {name: below for name, below in gradients.items() if name != models.SUMMED}
        gradients = gradients | jax.lax.psum(own, DATA_AXIS)
        updates, opt_state = optimizer.update(gradients, player.opt_state, player.params)
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
    # Batches go on where the one before ended, so that many classes all have their turn.
    labels = (index * count + jnp.arange(count)) % generator.classes
    return generator.apply({"params": state.generator.params}, noise, labels), labels


def _step_key(state: GameState, stream: int) -> jax.Array:
    """Returns the key of a step's draws from one of the independent streams."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), stream), state.step)


def _norm(tree: Any) -> jax.Array:
    # As inner products: XLA's CPU backend is slow where it sums many squares to one number, up to
    # a second for the generator's dense layer at 224 pixels.
    return jnp.sqrt(optax.tree.vdot(tree, tree))


def _with_kernel_ranges(ranges: Any, params: Any, bits: Any, rule: str) -> Any:
    """Adds the ranges of all kernels, where learning begins; of `quantizers.WEIGHT_RANGE_RULES`."""
    if "weight" in bits:
        ends = quantizers.WEIGHT_RANGE_RULES[rule](params["kernel"], bits["weight"])
        return dict(zip(("minimum", "maximum"), ends, strict=True))
    return {
        name: ranges[name]
        if "activation" in below
        else _with_kernel_ranges(ranges.get(name, {}), params[name], below, rule)
        for name, below in bits.items()
    }


def _ends(ranges: Any) -> Any:
    """Returns what can be learned of the ranges: the collection `clipping`.

    Of an activation the upper end alone, since the lower one of a ReLU is 0.
    """
    if "maximum" not in ranges:
        return {name: _ends(below) for name, below in ranges.items()}
    learned = ("maximum",) if "updates" in ranges else ("minimum", "maximum")
    return {name: ranges[name] for name in learned}


def _with_ends(ranges: Any, ends: Any) -> Any:
    """Returns the ranges with other ends."""
    if "maximum" in ranges:
        return ranges | ends
    return {name: _with_ends(ranges[name], ends[name]) for name in ranges}


def _mean_width(ranges: Any) -> jax.Array:
    """Returns the mean width of the activation ranges, over the layers."""
    widths = leaves_by_layer(
        ranges, lambda layer: layer["maximum"] - layer["minimum"] if "updates" in layer else None
    )
    return jnp.stack([width for width in widths if width is not None]).mean()


def _gather(own: Responses) -> Responses:
    """Collects the devices' slices, given without their axis, in one collective."""
    flat, restore = jax.flatten_util.ravel_pytree(own)
    return jax.vmap(restore)(jax.lax.all_gather(flat, DATA_AXIS))


def _join(slices: jax.Array) -> jax.Array:
    return slices.reshape(-1, slices.shape[-1])
