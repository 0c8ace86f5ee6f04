"""The memory and the computation that a run's steps need, known before the first step."""

import dataclasses
import math
import time

import jax
import ml_collections

from adadfq_jax.devices import machine, memory, pmap
from adadfq_jax.errors import ConfigError
from adadfq_jax.game.programs import dispatches, steps
from adadfq_jax.game.state import GameState, Phase
from adadfq_jax.game.step import Game
from adadfq_jax.models import size
from adadfq_jax.models.network import Teacher
from adadfq_jax.training.progress import Progress
from adadfq_jax.training.words import phase_ends

# How much longer the steps are compiled than the network is traced once, which takes longer on a
# slow machine and of a deep network too; measured on two CPU cores.
_COMPILING_PER_TRACING = 80.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """The size of a run's networks and the memory of its steps.

    Attributes:
      parameters: number of parameters of the teacher, and of the student.
      macs: multiply-accumulate operations of one of them for one image.
      generator_parameters: number of parameters of the generator.
      phase: the phase whose steps need the most memory.
      step_bytes: bytes of memory that those steps need on each device.
      device_bytes: bytes of memory of a device; None where it does not report them.
      devices: number and kind of the devices, such as "1 x cpu".
      images: images that the generator makes in a step, on all devices.
      extra: images of a step besides those of the generator, on all devices; 0 for none.
      share: generated images of a step on each device.
      compile_seconds: how long these steps were compiled, or read from the cache of programs.
      extra_kind: what the extra images are.
    """

    parameters: int
    macs: int
    generator_parameters: int
    phase: str
    step_bytes: int
    device_bytes: int | None
    devices: str
    images: int
    extra: int
    share: int
    compile_seconds: float = 0.0
    extra_kind: str = "procedural"

    def to_text(self) -> str:
        """Returns one line for a person."""
        has = "" if self.device_bytes is None else f" of {self.device_bytes / 1e9:.1f} GB"
        more = f" and {self.extra} {self.extra_kind} ones" if self.extra else ""
        return (
            f"network: {self.parameters:,} parameters, {self.macs:,} MACs an image; generator: "
            f"{self.generator_parameters:,} parameters; a step ({self.phase}) of {self.images} "
            f"generated images{more}: {self.step_bytes / 1e9:.2f} GB{has} on each of "
            f"{self.devices}, with {self.share} generated images each"
        )


def estimate_cost(
    game: Game,
    config: ml_collections.ConfigDict,
    state: GameState,
    teacher: Teacher,
    devices: list[jax.Device],
    progress: Progress,
) -> Cost:
    """Compiles the steps that need the most memory, and returns what they cost.

    Args:
      game: the step and its rules.
      config: the run's configuration.
      state: the state before the first step, arrays without a device axis.
      teacher: P.
      devices: where the run takes its steps.
      progress: where it is told that a program is compiled, and for about how long.

    Raises:
      ConfigError: the steps do not fit the devices; the message says what would help.
    """
    plays = config.epochs > config.warmup_epochs
    phase = Phase.PLAY if plays else game.phase((config.epochs - 1) * config.steps_per_epoch)
    count = next(dispatches(0, config.steps_per_epoch, config, devices[0].platform))
    types = [pmap.replicated_types(tree, len(devices)) for tree in (state, teacher.variables)]
    began = time.monotonic()
    network = size.measure_network(teacher.module, teacher.image_size)
    about = _COMPILING_PER_TRACING * (time.monotonic() - began)
    of = f"program 1 of {len(phase_ends(config))}"
    try:
        with progress.busy(f"compiling {of}, the steps of {phase.value}", about, told=True):
            began = time.monotonic()
            program = steps(game, devices, phase, count, *types)
            compile_seconds = time.monotonic() - began
    except jax.errors.JaxRuntimeError as error:  # a compiler that knows the device's memory
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"a step does not fit the devices' memory: {str(error).splitlines()[0].rstrip('.')}. "
            f"{_advice(config, devices)}"
        ) from error
    own = machine.part_of_process(devices)[0]
    cost = Cost(
        parameters=network.parameters,
        macs=network.macs,
        generator_parameters=sum(
            math.prod(leaf.shape) for leaf in jax.tree.leaves(state.generator.params)
        ),
        phase=phase.value,
        step_bytes=memory.program_bytes(program),
        device_bytes=memory.memory_bytes(own[0], len(own)),
        devices=f"{len(devices)} x {devices[0].device_kind}",
        images=config.batch_size,
        extra=config.batch_size * config.samples.procedural,
        share=config.batch_size // len(devices),
        compile_seconds=compile_seconds,
        extra_kind=_extra_kind(config.samples),
    )
    if cost.device_bytes is not None and cost.step_bytes > cost.device_bytes:
        raise ConfigError(
            f"a step ({cost.phase}) of {teacher.architecture} needs "
            f"{cost.step_bytes / 1e9:.1f} GB of memory on each of {cost.devices}, which has "
            f"{cost.device_bytes / 1e9:.1f} GB. {_advice(config, devices)}"
        )
    if devices[0].platform == "cpu" and cost.device_bytes is not None:
        memory.keep_if_it_fits(cost.step_bytes, cost.device_bytes)
    return cost


def _extra_kind(samples: ml_collections.ConfigDict) -> str:
    if not samples.images_count:
        return "procedural"
    return "given" if samples.images_share == 1 else "procedural and given"


def _advice(config: ml_collections.ConfigDict, devices: list[jax.Device]) -> str:
    """Returns a sentence on what would reduce a step's memory and is not set yet."""
    ways = []
    # CPU devices share one memory.
    if devices[0].platform != "cpu" and len(devices) < config.batch_size:
        ways.append(f"more devices than {len(devices)} to spread the batch over")
    if not config.remat:
        ways.append("--config.remat=True, which computes activations twice, to keep fewer of them")
    ways += [
        f"--config.precision.{part}=bfloat16"
        for part in ("teacher", "generator")
        if config.precision[part] == "float32"
    ]
    if config.samples.procedural:
        ways.append(f"--config.samples.procedural below {config.samples.procedural}")
    if config.samples.images_count:
        ways.append(f"fewer samples.images than {config.samples.images_count:,}")
    ways.append(f"a --config.batch_size below {config.batch_size}")
    return f"What helps: {'; '.join(ways)}."
