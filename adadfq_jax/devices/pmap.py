"""Devices: where arrays lie, and the only user of `jax.pmap`.

State is kept once per device, with a leading device axis, as `jax.pmap` wants it. A data-free step
has no batch to map over, so the devices' indices are mapped instead; each device takes its slice
of a batch that is drawn whole, and so the number of devices does not change the game.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from adadfq_jax.devices.machine import part_of_process

DATA_AXIS = "data"


def map_over_devices(
    function: Callable[..., Any],
    devices: list[jax.Device],
    donate: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Maps a function over devices, with collectives over the axis `data`; compiled when called.

    Args:
      function: what one device does, on arguments without the device axis.
      devices: where to run.
      donate: indices of arguments whose memory the results may take over.

    Returns:
      The compiled function, whose results have a leading device axis.
    """
    if devices[0].platform == "tpu":
        # By default, a TPU would round what it multiplies to bfloat16.
        function = jax.default_matmul_precision("float32")(function)
    mapped = jax.pmap(function, axis_name=DATA_AXIS, devices=devices, donate_argnums=donate)
    if jax.process_count() == 1:
        return mapped
    return _OverProcesses(mapped, len(part_of_process(devices)[0]))


class _OverProcesses:
    """A mapped function whose arrays have rows of all processes' devices.

    `jax.pmap` itself takes and returns the rows of one process, and copies what it takes over. What
    it compiles does neither.
    """

    def __init__(self, mapped: Callable[..., Any], own: int):
        """Takes a function of `jax.pmap`, and how many of its devices are this process's."""
        self._mapped, self._own = mapped, own
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """As of `jax.pmap`; needs shapes and types only."""
        rows = jax.tree.map(
            lambda leaf: np.zeros((self._own, *leaf.shape[1:]), leaf.dtype), arguments
        )
        return self._mapped.lower(*rows)

    def __call__(self, *arguments: Any) -> Any:
        leaves, tree = jax.tree.flatten(arguments)
        key = tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._compiled:
            self._compiled[key] = self.lower(*arguments).compile()
        return self._compiled[key](*arguments)


def device_indices(devices: list[jax.Device]) -> jax.Array:
    """Returns 0, 1, …: one index a device, on it."""
    return _put([np.int32(index) for index in range(len(devices))], devices)


def spread(rows: np.ndarray, devices: list[jax.Device]) -> jax.Array:
    """Puts one row on each of this process's devices; the array has those of all processes."""
    with _meant():
        return jax.make_array_from_process_local_data(_sharding(devices), rows)


def replicated_types(tree: Any, devices: int) -> Any:
    """Returns shapes and types of what `replicate` would make for so many devices."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((devices, *np.shape(leaf)), jax.dtypes.result_type(leaf)),
        tree,
    )


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """Copies a tree of arrays to every device, with a leading device axis."""
    return jax.tree.map(lambda leaf: _put([np.asarray(leaf)] * len(devices), devices), tree)


def _put(values: list[np.ndarray], devices: list[jax.Device]) -> jax.Array:
    """Makes one array whose i-th row lies on the i-th device."""
    shape = (len(values), *values[0].shape)
    with _meant():
        return jax.make_array_from_callback(
            shape, _sharding(devices), lambda index: np.array(values[index[0].start or 0][None])
        )


def _meant() -> contextlib.AbstractContextManager:
    """Tells JAX's transfer guard that arrays go to the devices on purpose."""
    return jax.transfer_guard_host_to_device("allow")


def _sharding(devices: list[jax.Device]) -> jax.sharding.Sharding:
    """The layout that pmap expects."""
    mesh = jax.sharding.Mesh(np.array(devices), (DATA_AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DATA_AXIS))


def fetch(tree: Any) -> Any:
    """Copies one device's share of a replicated tree to the host, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)
