"""What a run says of itself in its first lines: its phases and the numbers beside the bar."""

import ml_collections

from adadfq_jax.data.unlabelled import Unlabelled
from adadfq_jax.game.methods import METHODS
from adadfq_jax.game.state import Phase
from adadfq_jax.models.display import not_data_free

_PHASES = {
    Phase.CALIBRATE: "only the generator learns, and the student's ranges follow its images",
    Phase.WARMUP: "only the generator learns, and the student's ranges stay",
    Phase.PLAY: "generator and student learn, each from how the other answers",
}


def phase_ends(config: ml_collections.ConfigDict) -> list[tuple[str, int]]:
    """Returns the name and the last step of each phase that a run has, in order."""
    epochs = (config.calibration_epochs, config.warmup_epochs, config.epochs)
    ends, before = [], 0
    for phase, epoch in zip(Phase, epochs, strict=True):
        end = min(epoch, config.epochs) * config.steps_per_epoch
        if end > before:
            ends.append((phase.value, end))
        before = max(end, before)
    return ends


def phase_line(phase: Phase, end: int) -> str:
    """Returns what a phase is, for the line that begins it; `end` is its last step."""
    return f"{phase.value}, to step {end:,}: {_PHASES[phase]}"


def images_line(images: Unlabelled) -> str:
    """Returns what images of a user a run's student learns from."""
    ignored = "; their labels are ignored" if images.labelled else ""
    return f"{not_data_free(images.count)} of {images.name}, for the student alone{ignored}"


def smallest_student_loss(config: ml_collections.ConfigDict) -> float:
    """Returns the smallest value that L_Q can have in a run."""
    method = METHODS[config.game.method]
    return method.smallest_student_loss(config.game, config.teacher.classes)


def legend(config: ml_collections.ConfigDict) -> str:
    """Returns what the numbers beside the bar are."""
    smallest = smallest_student_loss(config)
    least = f", {smallest:,.1f}" if smallest else ""
    return (
        "numbers: L_G, what the generator minimises; BNS, how far its images are from what the "
        "teacher's BatchNorms remember; L_Q, what the student minimises, above its smallest "
        f"possible value{least}; H', how much teacher and student agree on an image, scaled from 0 "
        "to 1; agree, images that both give the same class"
    )
