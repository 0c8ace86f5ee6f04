"""Held-out images, which no player was trained on, made by a run's generator to measure with."""

from collections.abc import Iterator

import jax
import numpy as np

from adadfq_jax.game.state import GameState
from adadfq_jax.game.step import Game

_SCORED_TOGETHER = 256

# Of images made at once: of each, the generator keeps a few arrays of 64 channels in float32.
_MOST_PIXELS = 2**21


def generator_batch_size(image_size: int) -> int:
    """Returns how many images the generator makes at a time at most: it then takes about 2 GB."""
    return max(_MOST_PIXELS // image_size**2, 2)


def scoring_batch_size(image_size: int) -> int:
    """Returns how many held-out images are made, and shown to P and Q, at a time.

    It does not follow `evaluation.batch_size`: G's BatchNorms and L_BNS depend on it, so that the
    health of students compares only at one size.
    """
    return min(_SCORED_TOGETHER, generator_batch_size(image_size))


def generate(
    game: Game, state: GameState, count: int, batch_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes images that no player was trained on, with the generator as it is.

    Args:
      game: the rules.
      state: its state, arrays without a device axis.
      count: how many images N.
      batch_size: images at a time, at most `generator_batch_size`; by default
        `scoring_batch_size`. Classes are mixed, since G normalises by the batch.

    Returns:
      (images (N, H, W, 3), normalised; labels (N,)).
    """
    batches = generated_batches(game, state, count, batch_size)
    images, labels = (np.concatenate(part)[:count] for part in zip(*batches, strict=True))
    return images, labels


def generated_batches(
    game: Game, state: GameState, count: int, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the images of `generate`, which has the same arguments, in whole batches."""
    image_size = game.generator.image_size
    size = min(batch_size or scoring_batch_size(image_size), generator_batch_size(image_size))
    # On the device once, and not with every batch: at 224 pixels G has 160 MB.
    params = jax.device_put(state.generator.params)
    state = state.replace(generator=state.generator.replace(params=params))
    for index in range(-(-count // size)):
        images, labels = game.sample(state, index, size)
        yield np.asarray(images), np.asarray(labels)
