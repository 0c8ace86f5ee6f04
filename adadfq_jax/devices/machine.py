"""This machine's cores and accelerators, and which of them a run uses."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from adadfq_jax.errors import ConfigError

# Where Linux lists PCI devices and GPUs, and the vendor and device numbers of TPU chips.
_PLUGGED_IN = Path("/sys/bus/pci/devices")

_GOOGLE, _TPU_CHIPS = "0x1ae0", ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")

_GPUS = Path("/proc/driver/nvidia/gpus")

_TPU_PORT = 8476

# Fewest images of a batch that a CPU device should have.
_SMALLEST_SHARE = 4


def cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextlib.contextmanager
def share_cores(index: int, count: int) -> Iterator[None]:
    """Restricts processes that start inside the context to one of several shares of the cores.

    They keep the restriction until they end. Does nothing where there are more shares than cores,
    or where the system cannot restrict a process.

    Args:
      index: which share, from 0.
      count: number of equal shares.
    """
    if not hasattr(os, "sched_setaffinity") or count > cores():
        yield
        return
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(everything)[index::count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, everything)


def shares_of_accelerators(count: int) -> list[dict[str, str]]:
    """Divides this machine's accelerators among processes, by environment variables.

    A TPU chip serves one process; a GPU can serve several, which divide its memory. Accelerators
    are counted without JAX, which would take all of them for this process.

    Args:
      count: number of processes; 0 for one per accelerator, or per core where there is none.

    Returns:
      For each process, the environment variables to set; empty without an accelerator.

    Raises:
      ConfigError: there are fewer TPU chips than processes.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    chips = 0 if on_cpu else _tpu_chips()
    if chips:
        count = count or chips
        if count > chips:
            raise ConfigError(
                f"--jobs={count}, but this machine has {chips} TPU chips, each for one job."
            )
        return [
            {
                "TPU_VISIBLE_CHIPS": str(index),
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_ADDRESSES": f"localhost:{_TPU_PORT + index}",
                "TPU_PROCESS_PORT": str(_TPU_PORT + index),
                "CLOUD_TPU_TASK_ID": "0",
            }
            for index in range(count)
        ]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = range(len(list(_GPUS.glob("*")))) if visible is None else visible.split(",")
    gpus = [] if on_cpu else [str(gpu) for gpu in found if gpu != ""]
    count = count or len(gpus) or cores()
    if not gpus:
        return [{}] * count
    per_gpu = -(-count // len(gpus))
    shares = [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(count)]
    if per_gpu > 1:
        for share in shares:
            share["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / per_gpu:.2f}"
    return shares


def _tpu_chips() -> int:
    numbers = (
        tuple((device / name).read_text().strip() for name in ("vendor", "device"))
        for device in _PLUGGED_IN.glob("*")
    )
    return sum(maker == _GOOGLE and device in _TPU_CHIPS for maker, device in numbers)


def divide_cpu(batch_size: int) -> None:
    """Makes JAX see one CPU device per core, or as many as divide a batch evenly.

    XLA's CPU backend runs convolutions of less than 128 channels on one core, one after another: a
    play step of ResNet-20, batch 16, takes 0.93 times as long on two devices of a core each. Call
    this before JAX looks for devices; it does nothing later, or where their number is set already.

    Args:
      batch_size: images of a step, on all devices.
    """
    if jax.config.jax_num_cpu_devices != -1 or "host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    ):
        return
    with contextlib.suppress(RuntimeError):  # JAX has looked already
        jax.config.update("jax_num_cpu_devices", _cpu_devices(cores(), batch_size))


def _cpu_devices(cores: int, batch_size: int) -> int:
    """Returns how many CPU devices share a batch evenly, none of them with too few images."""
    counts = [
        count
        for count in range(1, cores + 1)
        if batch_size % count == 0 and batch_size >= count * _SMALLEST_SHARE
    ]
    return max(counts, default=1)


def choose_devices(count: int, batch_size: int) -> list[jax.Device]:
    """Picks the devices of a run.

    Args:
      count: number of devices; 0 for all.
      batch_size: images of a step, which must divide evenly over the devices.

    Raises:
      ConfigError: there are fewer devices, the batch does not divide, or the processes would have
        different numbers of devices.
    """
    found = jax.devices()
    count = count or len(found)
    if count > len(found):
        where = "this machine has" if jax.process_count() == 1 else "all processes together have"
        raise ConfigError(f"devices={count}, but {where} {len(found)}.")
    if count > batch_size:
        raise ConfigError(
            f"batch_size={batch_size} can be spread over at most as many devices, not {count}: "
            "name fewer with --config.devices, or use them for several runs (`adadfq sweep`)."
        )
    if batch_size % count:
        raise ConfigError(
            f"batch_size={batch_size} does not divide evenly over {count} devices; choose a "
            f"multiple of {count}, or fewer devices with --config.devices."
        )
    chosen = found[:count]
    shares = {process: 0 for process in range(jax.process_count())}
    for device in chosen:
        shares[device.process_index] += 1
    if len(set(shares.values())) > 1:
        raise ConfigError(
            f"devices={count} would give the {len(shares)} processes different numbers of devices; "
            f"choose all {len(found)} (--config.devices=0)."
        )
    return chosen


def part_of_process(devices: list[jax.Device]) -> tuple[list[jax.Device], int, int]:
    """Returns the part that this process has in a list of devices.

    Args:
      devices: devices of any number of processes.

    Returns:
      (this process's devices, its index among the processes that have some, their number).
    """
    processes = sorted({device.process_index for device in devices})
    own = jax.process_index()
    mine = [device for device in devices if device.process_index == own]
    return mine, processes.index(own), len(processes)
