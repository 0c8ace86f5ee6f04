"""Held-out images: made by a run's generator from noise that no step uses, to measure students."""

from collections.abc import Iterator

import jax
import numpy as np

from adadfq_jax.game.state import GameState
from adadfq_jax.game.step import Game

_SCORED_AT_A_TIME = 256

# Pixels of a batch of images; for each pixel the generator holds a few arrays of 64 channels.
_MOST_PIXELS = 2**21


def generator_batch_size(image_size: int) -> int:
    """Returns the most images that the generator makes at a time, which takes about 2 GB.

    Args:
      image_size: side of an image in pixels.
    """
    return max(_MOST_PIXELS // image_size**2, 2)


def scoring_batch_size(image_size: int) -> int:
    """Returns the batch size in which held-out images are made and given to P and Q.

    The batch size is fixed, whatever `evaluation.batch_size` is: G's BatchNorm and L_BNS depend on
    it, so scores compare only at one size.

    Args:
      image_size: side of an image in pixels.
    """
    return min(_SCORED_AT_A_TIME, generator_batch_size(image_size))


def generate(
    game: Game, state: GameState, count: int, batch_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes held-out images with the generator of a state.

    Args:
      game: the step and its rules.
      state: the run's state, arrays without a device axis.
      count: number of images N.
      batch_size: images at a time, at most `generator_batch_size`; None for `scoring_batch_size`.
        A batch holds mixed classes, since G normalises by the batch.

    Returns:
      (images (N, H, W, 3), normalised; labels (N,)).
    """
    batches = generated_batches(game, state, count, batch_size)
    images, labels = (np.concatenate(part)[:count] for part in zip(*batches, strict=True))
    return images, labels


def generated_batches(
    game: Game, state: GameState, count: int, batch_size: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the images of `generate` in whole batches; the arguments are the same."""
    image_size = game.generator.image_size
    size = min(batch_size or scoring_batch_size(image_size), generator_batch_size(image_size))
    # Copied to the device once and not for every batch: at 224 pixels G has 160 MB.
    params = jax.device_put(state.generator.params)
    state = state.replace(generator=state.generator.replace(params=params))
    for index in range(-(-count // size)):
        images, labels = game.sample(state, index, size)
        yield np.asarray(images), np.asarray(labels)
