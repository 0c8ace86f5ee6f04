"""What a step is compiled for: the part of a configuration that does not change while it runs."""

import dataclasses

import ml_collections


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the step depends on; bit-widths and seed are data to it, and travel in the state.

    Attributes:
      batch_size: G's images of a step, over all devices.
      steps_per_epoch: steps of an epoch.
      calibration_epochs, warmup_epochs: the epochs before which calibration and warm-up end.
      epochs: in all, where Q's rate depends on it (Adam); else None, so that runs of any length
        share a compiled step.
      learned_ranges: whether Q learns its ranges too.
      game, generator, student, samples, precision: these sections of the configuration.
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
        """Takes the rules out of a run's whole configuration."""
        sections = ("game", "generator", "student", "samples", "precision")
        return cls(
            batch_size=config.batch_size,
            steps_per_epoch=config.steps_per_epoch,
            calibration_epochs=config.calibration_epochs,
            warmup_epochs=config.warmup_epochs,
            epochs=None if config.student.optimizer == "sgd" else config.epochs,
            learned_ranges=config.quant.learned_ranges,
            **{name: ml_collections.FrozenConfigDict(config[name]) for name in sections},
        )
