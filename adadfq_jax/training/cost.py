"""What the steps of a run ask of the devices, told before the first one."""

import dataclasses
import math

import jax
import ml_collections

from adadfq_jax.devices import machine, memory, pmap
from adadfq_jax.errors import ConfigError
from adadfq_jax.game.programs import dispatches, steps
from adadfq_jax.game.state import GameState, Phase
from adadfq_jax.game.step import Game
from adadfq_jax.models import size
from adadfq_jax.models.network import Teacher


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a game asks for.

    Attributes:
      parameters: of teacher or student.
      macs: multiply-accumulate operations of one of them for one image.
      generator_parameters: of the generator.
      phase: of the steps that ask for the most memory.
      step_bytes: of memory that they ask of each device.
      device_bytes: that a device has; None where it does not tell.
      devices: how many, and of which kind.
      images: of the generator in a step, over all devices.
      procedural: images of a step beside them, for the student alone.
      share: images of each device.
    """

    parameters: int
    macs: int
    generator_parameters: int
    phase: str
    step_bytes: int
    device_bytes: int | None
    devices: str
    images: int
    procedural: int
    share: int

    def to_text(self) -> str:
        """Returns one line for a person."""
        has = "" if self.device_bytes is None else f" of {self.device_bytes / 1e9:.1f} GB"
        beside = f" and {self.procedural} procedural ones" if self.procedural else ""
        return (
            f"network: {self.parameters:,} parameters, {self.macs:,} MACs an image; generator: "
            f"{self.generator_parameters:,} parameters; a step ({self.phase}) of {self.images} "
            f"images{beside}: {self.step_bytes / 1e9:.2f} GB{has} on each of {self.devices}, which "
            f"plays {self.share}"
        )


def estimate_cost(
    game: Game,
    config: ml_collections.ConfigDict,
    state: GameState,
    teacher: Teacher,
    devices: list[jax.Device],
) -> Cost:
    """Compiles the steps that ask for the most memory, and returns what they cost.

    Args:
      game: the rules.
      config: the run's configuration.
      state: the state before the first step, arrays without a device axis.
      teacher: P.
      devices: where to play.

    Raises:
      ConfigError: the steps do not fit the devices; says what would help.
    """
    plays = config.epochs > config.warmup_epochs
    phase = Phase.PLAY if plays else game.phase((config.epochs - 1) * config.steps_per_epoch)
    count = next(dispatches(0, config.steps_per_epoch, config, devices[0].platform))
    types = [pmap.replicated_types(tree, len(devices)) for tree in (state, teacher.variables)]
    try:
        program = steps(game, devices, phase, count, *types)
    except jax.errors.JaxRuntimeError as error:  # a compiler that knows the device's memory
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(
            f"it does not fit: {str(error).splitlines()[0].rstrip('.')}. {_advice(config, devices)}"
        ) from error
    own = machine.part_of_process(devices)[0]
    network = size.measure_network(teacher.module, teacher.image_size)
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
        procedural=config.batch_size * config.samples.procedural,
        share=config.batch_size // len(devices),
    )
    if cost.device_bytes is not None and cost.step_bytes > cost.device_bytes:
        raise ConfigError(
            f"it does not fit: a step ({cost.phase}) of {teacher.architecture} asks for "
            f"{cost.step_bytes / 1e9:.1f} GB of each of {cost.devices}, which has "
            f"{cost.device_bytes / 1e9:.1f} GB. {_advice(config, devices)}"
        )
    return cost


def _advice(config: ml_collections.ConfigDict, devices: list[jax.Device]) -> str:
    """Returns a sentence on what makes a step smaller, of what is not done yet."""
    ways = []
    # CPU devices share one memory.
    if devices[0].platform != "cpu" and len(devices) < config.batch_size:
        ways.append(f"more devices than {len(devices)} to spread the batch over")
    if not config.remat:
        ways.append("--config.remat=True, which makes activations twice instead of keeping them")
    ways += [
        f"--config.precision.{part}=bfloat16"
        for part in ("teacher", "generator")
        if config.precision[part] == "float32"
    ]
    if config.samples.procedural:
        ways.append(f"--config.samples.procedural below {config.samples.procedural}")
    ways.append(f"a --config.batch_size below {config.batch_size}")
    return f"What helps: {'; '.join(ways)}."
