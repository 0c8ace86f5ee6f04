"""Unlabelled images of a user, from which a student learns beside generated ones."""

import dataclasses
import functools
from typing import Any

import ml_collections
import numpy as np

from adadfq_jax.data.dataset import check_fits
from adadfq_jax.errors import DataError
from adadfq_jax.storage.digests import digest
from adadfq_jax.storage.files import on_a_disk


@dataclasses.dataclass(frozen=True)
class Unlabelled:
    """Images without labels, as a network takes them.

    Attributes:
      name: where they are from, for messages.
      pixels: uint8 (N, H, W, channels).
      labelled: whether there were labels, which are ignored.
    """

    name: str
    pixels: np.ndarray
    labelled: bool

    @property
    def count(self) -> int:
        """The number of images N."""
        return len(self.pixels)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the pixels."""
        return digest({"x": self.pixels})


def images_of(config: ml_collections.ConfigDict, network: Any) -> Unlabelled | None:
    """Reads the images that a run's student learns from: `samples.images`.

    Args:
      config: the run's configuration.
      network: what takes the images, as `images.fit` knows it.

    Returns:
      The images, resized and cropped as those of an evaluation set; None where the configuration
      names none, or wants a share of 0.

    Raises:
      DataError: there are no images, they cannot be read, or do not fit the network.
      ConfigError: they are not on a disk.
    """
    samples = config.samples
    if samples.images is None or not samples.images_share:
        return None
    path = on_a_disk(samples.images)
    if not path.exists():
        raise DataError(
            f"there are no images {str(path)!r} (samples.images): give a folder of image files, or "
            "an .npz file."
        )
    # Each kind is imported when it is used, as in `load`.
    if path.is_dir():
        from adadfq_jax.data.folder import load_unlabelled_folder as load
    else:
        from adadfq_jax.data.npz import load_unlabelled_npz as load
    dataset, labelled = load(path)
    check_fits(dataset, network)
    return Unlabelled(str(path), dataset.images(network), labelled)
