"""Plays AdaDFQ with the PyTorch transcription in `reference/`, for a curve beside a run of ours.

  pip install -e .[torch]
  python adadfq_jax/assets/play_transcription.py --teacher=resnet20.safetensors \\
    --images=test.npz --bits=w3a3 --epochs=48 --output=runs/transcription_w3a3

The procedure and the constants are those of the authors' program, the random numbers PyTorch's. Of
our configuration it takes the schedule: batch, steps an epoch, calibration and milestones. Writes
`metrics.jsonl` in the form of a run's: the means of the last 50 steps, and top-1 after every
fourth epoch. It cannot be resumed; 56 epochs took 72 minutes of one of two busy cores.
"""

import argparse
import json
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

import adadfq_jax
from adadfq_jax.benchmarks.torch_opponent import serves, twin
from adadfq_jax.config import bounds
from adadfq_jax.data.dataset import check_fits
from adadfq_jax.data.npz import load_npz
from adadfq_jax.errors import AdaDFQError, ConfigError
from adadfq_jax.models.network import normalize
from adadfq_jax.quantization.bits import parse_bits
from adadfq_jax.reference import game as reference
from adadfq_jax.reference import networks
from adadfq_jax.training.workdir import METRICS

_LOGGED_STEPS, _EVALUATED_EPOCHS, _EVALUATED_IMAGES = 50, 4, 500


def top1(student: networks.Classifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the share of images (N, 3, H, W), normalised, on which a student is right."""
    student.set_calibrating(False)
    with torch.no_grad():
        hits = [
            (student(x).argmax(1) == y).sum().item()
            for x, y in zip(
                images.split(_EVALUATED_IMAGES), labels.split(_EVALUATED_IMAGES), strict=True
            )
        ]
    return sum(hits) / len(labels)


def play(match: reference.Game, config, epochs: int, evaluated, write) -> None:
    """Plays a number of epochs.

    Args:
      match: the game, not yet begun.
      config: our configuration, of which the schedule is taken.
      epochs: how many to play, those of calibration included.
      evaluated: (images (N, 3, H, W), normalised; labels (N,)), which top-1 is measured on.
      write: is given every record of the log.
    """
    classes, batch = match.teacher.shape["classes"], config.batch_size
    players = (
        (match.generator_optimizer, config.generator),
        (match.student_optimizer, config.student),
    )
    ends = config.calibration_epochs, config.warmup_epochs
    seen = []
    for epoch in range(epochs):
        for optimizer, player in players:
            if epoch in player.milestones:
                optimizer.param_groups[0]["lr"] *= player.decay
        phase = reference.PHASES[sum(epoch >= end for end in ends)]
        for step in range(epoch * config.steps_per_epoch, (epoch + 1) * config.steps_per_epoch):
            result = match.step(torch.randn(batch, 100), torch.randint(classes, (batch,)), phase)
            agreed = result["logits_teacher"].argmax(1) == result["logits_student"].argmax(1)
            seen.append((agreed.float().mean().item(), result["l_bns"].item()))
            if (step + 1) % _LOGGED_STEPS == 0:
                agreement, l_bns = np.mean(seen, axis=0)
                write({"step": step + 1, "phase": phase, "agreement": agreement, "l_bns": l_bns})
                seen.clear()
        if (epoch + 1) % _EVALUATED_EPOCHS == 0 or epoch + 1 == epochs:
            share = top1(match.student, *evaluated)
            write({"step": step + 1, "evaluation": True, "top1": share})


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line, or words in its place."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", required=True, help="a file of `adadfq convert`")
    parser.add_argument("--images", required=True, type=Path, help="evaluation images, an .npz")
    parser.add_argument("--bits", default="w3a3", help="bit-widths such as w3a3")
    parser.add_argument("--epochs", default=48, type=int, help="with those of calibration")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--output", required=True, type=Path, help="folder of the log")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> None:
    """Reads, plays and writes; the command line, or words in its place, says what."""
    arguments = parse(words)
    torch.set_num_threads(1)
    try:
        bits = parse_bits(arguments.bits)
        bounds.SEED.check("--seed", arguments.seed)
        torch.manual_seed(arguments.seed)
        config = adadfq_jax.default_config()  # of which only the schedule is taken
        teacher = adadfq_jax.load_teacher(arguments.teacher)
        evaluated = _prepared(arguments.images, teacher)
        if arguments.epochs < 1:
            raise ConfigError(f"--epochs must be 1 or more, not {arguments.epochs}.")
        if not serves(teacher.module):
            raise ConfigError(f"the transcription has no network such as {teacher.architecture}.")
        log = _new_log(arguments.output)
    except AdaDFQError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        raise SystemExit(f"{error.filename}: {error.strerror}.") from error
    original = twin(teacher.module, teacher.variables).eval()
    match = reference.Game(
        original,
        original.quantized(bits).eval(),
        networks.Generator(teacher.classes, teacher.image_size),
        procedure="authors",
    )
    print(
        f"playing {arguments.epochs} epochs of {config.steps_per_epoch} steps; {log.name} grows "
        f"every {_LOGGED_STEPS} steps",
        flush=True,
    )
    try:
        with log:
            play(match, config, arguments.epochs, evaluated, lambda record: _write(log, record))
    except KeyboardInterrupt:
        raise SystemExit(f"stopped; {arguments.output} holds the log up to here.") from None


def _new_log(folder: Path) -> TextIO:
    """Makes a folder and opens the log in it.

    Raises:
      ConfigError: there is a log, or the folder is something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"--output={folder} is not a folder.") from None
    path = folder / METRICS
    try:
        return open(path, "x")
    except FileExistsError:
        raise ConfigError(
            f"{path} exists, and a game of the transcription cannot be resumed: choose another "
            "--output, or remove that file."
        ) from None


def _prepared(path: Path, teacher: adadfq_jax.Teacher) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads images: returns them normalised, (N, 3, H, W), and their labels (N,)."""
    dataset = load_npz(path)
    check_fits(dataset, teacher)
    images, labels = map(np.stack, zip(*dataset.records, strict=True))
    images = np.array(normalize(images, teacher.mean, teacher.std).transpose(0, 3, 1, 2))
    return torch.from_numpy(images), torch.tensor(labels)


def _write(log, record: dict) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()
    if "top1" in record:
        print(f"step {record['step']}: top-1 {record['top1']:.2%}", flush=True)


if __name__ == "__main__":
    main()
