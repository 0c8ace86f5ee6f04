"""Accuracy of a network on labelled images, over any number of devices."""

import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adadfq_jax.data.dataset import Dataset, check_fits, check_labels, from_arrays
from adadfq_jax.devices import machine, pmap
from adadfq_jax.errors import DataError
from adadfq_jax.game.losses import cross_entropy
from adadfq_jax.models.network import Network, normalize

# A table has a line for each class up to so many, and else for so few.
_MOST_LINES, _FEW_LINES = 100, 20


def evaluate(
    network: Network,
    dataset: Dataset | tuple[np.ndarray, np.ndarray],
    batch_size: int = 256,
    devices: list[jax.Device] | None = None,
    *,
    per_class: bool = False,
) -> dict[str, Any]:
    """Measures a teacher or a student, counting every image exactly once.

    Args:
      network: what to measure. An object without a `module`, such as a loaded export, is called on
        the host.
      dataset: an evaluation set, or (images, labels) as `dataset.from_arrays` takes them.
      batch_size: most images at a time on all devices (at least one for each device).
      devices: where to run; None for all. With several processes, each reads a part of the images.
      per_class: whether to return counts for each class.

    Returns:
      `top1` and `top5` as fractions, `loss` (mean cross entropy), `images`,
      `images_per_second` (loading included; the first batch, which compiles, excluded where there
      are several), and with `per_class` also `per_class`: an int array (classes, 3) of images,
      top-1 hits and top-5 hits.

    Raises:
      DataError: an image cannot be read, or images or labels do not fit the network.
    """
    if not isinstance(dataset, Dataset):
        if not isinstance(dataset, tuple | list) or len(dataset) != 2:
            raise DataError(
                "the dataset must be one of load_dataset, or (images, labels), not "
                f"{dataset!r:.60}."
            )
        dataset = from_arrays(*dataset)
    check_fits(dataset, network)
    if not hasattr(network, "module"):
        return _result(*_count_on_host(network, dataset, batch_size), per_class)
    devices = devices or jax.devices()
    own, shard, shards = machine.part_of_process(devices)
    # Batches of equal sizes, so that the last one needs as little padding as possible.
    steps = -(-len(dataset) // batch_size)
    share = -(-len(dataset) // (steps * len(devices)))
    counted = count_hits(network, dataset, share, devices, len(own), shard, shards)
    return _result(*counted, per_class)


def _result(counts: np.ndarray, loss: float, rate: float, per_class: bool) -> dict[str, Any]:
    images, top1, top5 = counts.sum(0).tolist()
    result = {
        "top1": top1 / images,
        "top5": top5 / images,
        "loss": loss / images,
        "images": images,
        "images_per_second": rate,
    }
    return result | ({"per_class": counts} if per_class else {})


def _count_on_host(
    model: Any, dataset: Dataset, batch_size: int
) -> tuple[np.ndarray, float, float]:
    """Returns the numbers of `count_hits`, for a model that is called on pixels on the host."""
    counts, loss = np.zeros((model.classes, 3), np.int64), 0.0
    start, timed = time.perf_counter(), len(dataset)
    for images, labels in dataset.batches(batch_size, model):
        check_labels(dataset, labels, model)
        logits = model(images)
        loss += len(labels) * float(cross_entropy(logits, labels))
        best = np.argsort(-logits, axis=1, kind="stable")[:, : min(5, model.classes)]
        hits = best == labels[:, None]
        row = np.stack([np.ones_like(labels), hits[:, 0], hits.any(1)], axis=1)
        np.add.at(counts, labels, row)
        if timed == len(dataset) > len(labels):  # not timed: the first of several, which compiles
            start, timed = time.perf_counter(), timed - len(labels)
    return counts, loss, timed / (time.perf_counter() - start)


def count_hits(
    network: Network,
    dataset: Dataset,
    share: int,
    devices: list[jax.Device],
    own: int,
    shard: int = 0,
    shards: int = 1,
) -> tuple[np.ndarray, float, float]:
    """Counts hits over all devices, reading this process's shard of the images.

    Args:
      network: what to measure.
      dataset: an evaluation set that fits the network.
      share: images at a time on each device.
      devices: where to run, devices of all processes.
      own: number of devices of this process; the same in each process.
      shard, shards: index of this process's part of the images, and number of parts.

    Returns:
      (int array (classes, 3) of images, top-1 hits and top-5 hits; sum of the cross entropies of
      all images; images per second), each over all devices.
    """
    count = _compiled(network.module, network.mean, network.std, tuple(devices))
    variables = pmap.replicate(network.variables, devices)
    size = network.image_size
    # A shard may have one image less than another and end a batch earlier, but every process must
    # take part in every step.
    steps = -(-len(dataset) // (share * own * shards))
    nothing = np.zeros((0, size, size, network.channels), np.uint8), np.zeros(0, np.int32)
    batches = dataset.batches(share * own, network, shard=shard, shards=shards)

    counted, start, done = [], time.perf_counter(), 0
    for images, labels in itertools.islice(
        itertools.chain(batches, itertools.repeat(nothing)), steps
    ):
        if len(labels):
            check_labels(dataset, labels, network)
        missing = share * own - len(labels)
        images = np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0)))
        # A label beyond the classes marks an image that only pads the batch.
        labels = np.pad(labels, (0, missing), constant_values=network.classes)
        batch = images.reshape(own, share, *images.shape[1:]), labels.reshape(own, share)
        counted.append(count(variables, *(pmap.spread(part, devices) for part in batch)))
        if len(counted) == 1 and steps > 1:
            jax.block_until_ready(counted)
            start, done = time.perf_counter(), share * len(devices)
    counts, sums = zip(*map(pmap.fetch, counted), strict=True)
    seconds = time.perf_counter() - start
    return np.sum(counts, axis=0), float(np.sum(sums)), (len(dataset) - done) / seconds


@functools.lru_cache(maxsize=8)
def _compiled(module: nn.Module, mean, std, devices: tuple[jax.Device, ...]):
    def count(variables: Any, images: jax.Array, labels: jax.Array):
        logits = module.apply(variables, normalize(images, mean, std))
        _, best = jax.lax.top_k(logits, min(5, module.classes))
        hits = best == labels[:, None]
        counts = jnp.stack([jnp.ones_like(labels), hits[:, 0], hits.any(-1)], -1)
        counts = jax.ops.segment_sum(counts, labels, module.classes)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        loss = jnp.where(labels < module.classes, losses, 0).sum()
        return jax.lax.psum((counts, loss), pmap.DATA_AXIS)

    return pmap.map_over_devices(count, list(devices))


def logits_of(
    network: Callable[[np.ndarray], Any], images: np.ndarray, batch_size: int
) -> np.ndarray:
    """Returns a network's logits of many images, (N, classes).

    Args:
      network: maps images to logits.
      images: (N, H, W, channels), as the network takes them.
      batch_size: images at a time.
    """
    starts = range(0, len(images), batch_size)
    return np.concatenate([np.asarray(network(images[at : at + batch_size])) for at in starts])


def percent(value: float | None) -> str:
    """Returns a fraction in percent, or "not measured" for None."""
    return "not measured" if value is None else f"{value:.2%}"


def accuracy_table(result: dict[str, Any], class_names: Sequence[str] | None = None) -> str:
    """Formats a result of `evaluate` as a plain table, with a line for each class if it has them.

    Of many classes only those of the lowest top-1 get one.

    Args:
      result: what `evaluate` returned.
      class_names: names of the classes; None for their numbers.
    """
    lines = [
        f"{'top-1':<22}{result['top1']:.2%}",
        f"{'top-5':<22}{result['top5']:.2%}",
        f"{'images per second':<22}{result['images_per_second']:.0f}",
    ]
    if "per_class" in result:
        lines += ["", f"{'class':<22}{'images':>8}{'top-1':>10}{'top-5':>10}"]
        names = class_names or range(len(result["per_class"]))
        rows = list(zip(names, result["per_class"].tolist(), strict=True))
        few = rows
        if len(rows) > _MOST_LINES:
            known = [(name, counts) for name, counts in rows if counts[0]]
            few = sorted(known, key=lambda row: row[1][1] / row[1][0])[:_FEW_LINES]
        for name, (images, top1, top5) in few:
            shares = [f"{hits / images:.2%}" if images else "-" for hits in (top1, top5)]
            lines.append(f"{name!s:<22}{images:>8}{shares[0]:>10}{shares[1]:>10}")
        if len(few) < len(rows):
            lines.append(f"and {len(rows) - len(few):,} other classes, which --json tells")
    return "\n".join(lines)
