"""Functions and arrays over several devices; the only module that maps over devices.

Each device has a copy of the state, along a leading device axis, as `jax.pmap` expects. A data-free
step has no batch to map over, so the devices' indices are mapped instead: every device draws the
whole batch and takes its slice, so the number of devices does not change the result.
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
    by: str = "pmap",
) -> Callable[..., Any]:
    """Maps a function over devices, with collectives over the axis `data`; compiled when called.

    Args:
      function: what one device computes, on arguments without the device axis.
      devices: where to run.
      donate: indices of arguments whose memory the results may reuse.
      by: "pmap" or "shard_map", which JAX recommends for new programs; the results are the same.

    Returns:
      The mapped function, whose arguments and results have a leading device axis.
    """
    if devices[0].platform == "tpu":
        # By default, a TPU rounds the factors of a product to bfloat16.
        function = jax.default_matmul_precision("float32")(function)
    return {"pmap": _by_pmap, "shard_map": _by_shard_map}[by](function, devices, donate)


def _by_pmap(function, devices, donate):
    mapped = jax.pmap(function, axis_name=DATA_AXIS, devices=devices, donate_argnums=donate)
    if jax.process_count() == 1:
        return mapped
    return _OverProcesses(mapped, len(part_of_process(devices)[0]))


def _by_shard_map(function, devices, donate):
    def of_one_row(*arguments):
        results = function(*jax.tree.map(lambda leaf: leaf[0], arguments))
        return jax.tree.map(lambda leaf: leaf[None], results)

    sharding = _sharding(devices)
    # Without a check of what varies over devices: the step says itself what it sums and gathers.
    mapped = jax.shard_map(
        of_one_row,
        mesh=sharding.mesh,
        in_specs=sharding.spec,
        out_specs=sharding.spec,
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donate, in_shardings=sharding, out_shardings=sharding)


class _OverProcesses:
    """A mapped function on arrays that have a row for each device of all processes.

    The function of `jax.pmap` takes and returns only this process's rows, and copies its donated
    arguments. The program that it compiles takes whole arrays and does not copy, so that is called.
    """

    def __init__(self, mapped: Callable[..., Any], own: int):
        """Wraps a function of `jax.pmap`; `own` of its devices are this process's."""
        self._mapped, self._own = mapped, own
        self._compiled: dict[Any, jax.stages.Compiled] = {}

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """Lowers the function, as that of `jax.pmap` does; only shapes and types are used."""
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
    """Returns 0, 1, …: an int32 array with each device's index on that device."""
    return _put([np.int32(index) for index in range(len(devices))], devices)


def spread(rows: np.ndarray, devices: list[jax.Device]) -> jax.Array:
    """Puts one row on each of this process's devices.

    Args:
      rows: one row for each of this process's devices.
      devices: the devices of all processes.

    Returns:
      An array with the rows of all processes.
    """
    with _meant():
        return jax.make_array_from_process_local_data(_sharding(devices), rows)


def replicated_types(tree: Any, devices: int) -> Any:
    """Returns the shapes and types of what `replicate` returns for this number of devices."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((devices, *np.shape(leaf)), jax.dtypes.result_type(leaf)),
        tree,
    )


def replicate(tree: Any, devices: list[jax.Device]) -> Any:
    """Copies a tree of arrays to every device, with a leading device axis."""
    return jax.tree.map(lambda leaf: _put([np.asarray(leaf)] * len(devices), devices), tree)


def _put(values: list[np.ndarray], devices: list[jax.Device]) -> jax.Array:
    """Makes one array whose i-th row is on the i-th device."""
    shape = (len(values), *values[0].shape)
    with _meant():
        return jax.make_array_from_callback(
            shape, _sharding(devices), lambda index: np.array(values[index[0].start or 0][None])
        )


def _meant() -> contextlib.AbstractContextManager:
    """Allows copies to devices where JAX's transfer guard forbids unintended ones."""
    return jax.transfer_guard_host_to_device("allow")


def _sharding(devices: list[jax.Device]) -> jax.sharding.NamedSharding:
    """Returns the sharding that mapped functions expect: a row on each device."""
    mesh = jax.sharding.Mesh(np.array(devices), (DATA_AXIS,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(DATA_AXIS))


def fetch(tree: Any) -> Any:
    """Copies one device's share of a replicated tree to the host, as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)
