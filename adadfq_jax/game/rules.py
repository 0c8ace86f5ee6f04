"""The part of a configuration that is compiled into the training step."""

import dataclasses

import ml_collections


@dataclasses.dataclass(frozen=True)
class Rules:
    """Constants of the compiled step. Bit-widths and seed are arrays of the state instead.

    Attributes:
      batch_size: images that G makes in a step, on all devices.
      steps_per_epoch: steps in an epoch.
      calibration_epochs: the epoch, counted from 0, in which calibration has ended.
      warmup_epochs: the epoch, counted from 0, in which the warm-up has ended.
      epochs: epochs of the run for Adam, whose rate depends on them; None for SGD, so that runs
        of any length share a compiled step.
      learned_ranges: whether Q learns quantization ranges.
      samples: this section of the configuration, without where its images lie and which they are.
      game, generator, student, precision: these sections of the configuration.
    """

    batch_size: int
    steps_per_epoch: int
    calibration_epochs: int
    warmup_epochs: int
    epochs: int | None
    learned_ranges: bool
    game: ml_collections.FrozenConfigDict
    generator: ml_collections.FrozenConfigDict
    student: ml_collections.FrozenConfigDict
    samples: ml_collections.FrozenConfigDict
    precision: ml_collections.FrozenConfigDict

    @classmethod
    def of(cls, config: ml_collections.ConfigDict) -> "Rules":
        """Returns the rules of a run's whole configuration."""
        sections = ("game", "generator", "student", "precision")
        names = ("procedural", "cutmix", "images_share", "images_count")
        return cls(
            batch_size=config.batch_size,
            steps_per_epoch=config.steps_per_epoch,
            calibration_epochs=config.calibration_epochs,
            warmup_epochs=config.warmup_epochs,
            epochs=None if config.student.optimizer == "sgd" else config.epochs,
            learned_ranges=config.quant.learned_ranges,
            samples=ml_collections.FrozenConfigDict({name: config.samples[name] for name in names}),
            **{name: ml_collections.FrozenConfigDict(config[name]) for name in sections},
        )
