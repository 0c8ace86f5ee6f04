"""Accuracy of a network on labelled images, over any number of devices."""

import functools
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adadfq_jax import parallel
from adadfq_jax.data import Dataset, check_fits, check_labels, from_arrays
from adadfq_jax.network import Network, normalize

_PADDING = -1  # label of images that only fill a batch


def evaluate(
    network: Network,
    dataset: Dataset | tuple[np.ndarray, np.ndarray],
    batch_size: int = 256,
    devices: list[jax.Device] | None = None,
) -> dict[str, float]:
    """Measures a teacher or a student, counting every image exactly once.

    Args:
      network: what to measure.
      dataset: an evaluation set, or (images, labels) as `data.from_arrays` takes them.
      batch_size: images at a time, over all devices (rounded up to a multiple of them).
      devices: where to run; all by default.

    Returns:
      `top1` and `top5` as fractions, `images`, `images_per_second`.

    Raises:
      DataError: the images or labels do not fit the network.
    """
    if not isinstance(dataset, Dataset):
        dataset = from_arrays(*dataset)
    check_fits(dataset, network)
    devices = devices or jax.devices()
    count = _compiled(network.module, network.mean, network.std, tuple(devices))
    variables = parallel.replicate(network.variables, devices)
    share = -(-min(batch_size, len(dataset)) // len(devices))

    start = time.perf_counter()
    counted = []
    for images, labels in dataset.batches(share * len(devices)):
        check_labels(dataset, labels, network)
        missing = share * len(devices) - len(labels)
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        labels = np.pad(labels, (0, missing), constant_values=_PADDING)
        shape = (len(devices), share)
        batch = (images.reshape(*shape, *images.shape[1:]), labels.reshape(shape))
        counted.append(count(variables, *batch))
    top1, top5 = np.sum([parallel.fetch(pair) for pair in counted], axis=0)
    seconds = time.perf_counter() - start
    return {
        "top1": float(top1) / len(dataset),
        "top5": float(top5) / len(dataset),
        "images": len(dataset),
        "images_per_second": len(dataset) / seconds,
    }


@functools.lru_cache(maxsize=8)
def _compiled(module: nn.Module, mean, std, devices: tuple[jax.Device, ...]):
    def count(variables: Any, images: jax.Array, labels: jax.Array):
        logits = module.apply(variables, normalize(images, mean, std))
        _, best = jax.lax.top_k(logits, min(5, module.classes))
        hits = best == labels[:, None]
        counts = jnp.stack([hits[:, 0].sum(), hits.sum()])
        return jax.lax.psum(counts, parallel.DATA_AXIS)

    return parallel.map_over_devices(count, list(devices))


def agreement(teacher: Network, student: Network, images: np.ndarray, batch_size: int) -> float:
    """Returns the fraction of images that teacher and student give the same class.

    Args:
      teacher, student: two networks of one input space.
      images: (N, H, W, 3), normalised.
      batch_size: images at a time.
    """
    same = 0
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        same += int(jnp.sum(teacher(batch).argmax(-1) == student(batch).argmax(-1)))
    return same / len(images)
