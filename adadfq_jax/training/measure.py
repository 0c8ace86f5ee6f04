"""Evaluations of a run's student, and pictures of its generator's images."""

from typing import Any

import ml_collections

from adadfq_jax.data.dataset import Dataset
from adadfq_jax.evaluation import health
from adadfq_jax.evaluation.accuracy import evaluate
from adadfq_jax.game.state import GameState
from adadfq_jax.game.step import Game
from adadfq_jax.models import pictures
from adadfq_jax.models.network import Teacher
from adadfq_jax.training.held_out import generate, generator_batch_size, scoring_batch_size
from adadfq_jax.training.student import student_of
from adadfq_jax.training.watch import Record

# Size of the picture at the end.
SAMPLES_PER_CLASS, SAMPLED_CLASSES = 10, 100

# Number and size of the smaller pictures during play.
_PICTURES_OF_PLAY, PICTURED_PER_CLASS, PICTURED_CLASSES = 4, 2, 16


def pictured_epochs(config) -> set[int]:
    """Returns the epochs with a picture: the first, the end of warm-up, each quarter of play."""
    played = config.epochs - config.warmup_epochs
    parts = range(_PICTURES_OF_PLAY + 1)
    return {1} | {config.warmup_epochs + played * part // _PICTURES_OF_PLAY for part in parts}


def draw_picture(
    game: Game, host: GameState, teacher: Teacher, per_class: int, classes: int
) -> bytes:
    """Draws a grid of the generator's images, from the same noise at every call.

    Args:
      game: the step and its rules.
      host: the run's state, arrays without a device axis.
      teacher: P.
      per_class: images of each class.
      classes: number of classes that are shown, the first ones.

    Returns:
      A PNG file.
    """
    # One batch of all classes, as far as memory allows, since the generator normalises by it.
    count = min(per_class * teacher.classes, generator_batch_size(teacher.image_size))
    images, labels = generate(game, host, count, count)
    shown = labels < classes
    return pictures.draw_grid(
        images[shown], labels[shown], teacher.mean, teacher.std, columns=per_class
    )


def evaluation_is_due(epoch: int, config: ml_collections.ConfigDict) -> bool:
    """Tells whether a run evaluates its student after an epoch."""
    if epoch <= config.warmup_epochs:
        return epoch == config.warmup_epochs  # the calibrated student, before it is trained
    return epoch % config.evaluation.every_epochs == 0 or epoch == config.epochs


def measure_accuracy(config, network, dataset: Dataset | None, devices) -> dict[str, Any]:
    """Measures a network on a run's evaluation images; every number is None without images."""
    if dataset is None:
        names = ("top1", "top5", "loss", "images", "class_top1")
        return dict.fromkeys(names)
    result = evaluate(network, dataset, config.evaluation.batch_size, devices, per_class=True)
    shares = [hits / images if images else None for images, hits, _ in result["per_class"].tolist()]
    return result | {"class_top1": shares}


def measure_student(config, game, host: GameState, teacher, dataset, devices) -> dict[str, Any]:
    """Measures the student: accuracy where there are images, and health on held-out ones."""
    student = student_of(game, host, teacher)
    accuracy = measure_accuracy(config, student, dataset, devices)
    at_a_time = scoring_batch_size(teacher.image_size)
    images, labels = generate(game, host, config.evaluation.generated_images)
    answers = health.score(teacher, student, images, labels, config.batch_size, at_a_time)
    known = {name: accuracy[name] for name in ("top1", "top5", "loss", "images", "class_top1")}
    return known | answers.numbers() | {"h_prime_histogram": answers.histogram()}


def note_evaluation(
    record: Record, step: int, epoch: int, config, measured: dict[str, Any]
) -> None:
    """Keeps in a run's record what the first, the best and the healthiest evaluation measured.

    Of the evaluations since the student first learned, each one's agreement is kept.
    """
    noted = {name: measured[name] for name in ("top1", "top5", "images", "agreement", "health")}
    noted["step"] = step
    if epoch == config.warmup_epochs:
        record.calibrated = noted
    elif epoch > config.warmup_epochs:
        record.played.append([step, measured["agreement"]])
    top1 = measured["top1"]
    if top1 is not None and top1 > record.best.get("top1", -1.0):
        record.best = noted
    if measured["health"] > record.healthiest.get("health", -1.0):
        record.healthiest = noted
