"""This machine's cores and accelerators, and which of them play one run."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from adadfq_jax.errors import ConfigError

# Where Linux shows what is plugged in, TPU chips by their maker's and their own numbers, and GPUs.
_PLUGGED_IN = Path("/sys/bus/pci/devices")

_GOOGLE, _TPU_CHIPS = "0x1ae0", ("0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")

_GPUS = Path("/proc/driver/nvidia/gpus")

_TPU_PORT = 8476

# Images of a batch that a CPU device should have at least.
_SMALLEST_SHARE = 4


def cores() -> int:
    """Returns how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@contextlib.contextmanager
def share_cores(index: int, count: int) -> Iterator[None]:
    """Gives the processes that are started meanwhile one of `count` equal shares of the cores.

    They keep it for life. Does nothing where there are more shares than cores, or where the system
    has no such thing.
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
    """Divides this machine's accelerators among processes, by what their environment says.

    A TPU chip serves one process, a GPU several, which divide its memory. Asks no runtime, which
    would take them all.

    Args:
      count: how many processes; 0 for one for each accelerator, or core where there is none.

    Returns:
      Of each process, the variables to set; none where the machine has no accelerator.

    Raises:
      ConfigError: there are fewer TPU chips.
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
    together = -(-count // len(gpus))
    shares = [{"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} for index in range(count)]
    if together > 1:
        for share in shares:
            share["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 / together:.2f}"
    return shares


def _tpu_chips() -> int:
    numbers = (
        tuple((device / name).read_text().strip() for name in ("vendor", "device"))
        for device in _PLUGGED_IN.glob("*")
    )
    return sum(maker == _GOOGLE and device in _TPU_CHIPS for maker, device in numbers)


def divide_cpu(batch_size: int) -> None:
    """Makes JAX see one CPU device a core, as far as a batch divides among them.

    XLA's CPU backend runs convolutions of less than 128 channels on one core, one after another: a
    play step of ResNet-20, batch 16, takes 0.93 times as long on two devices of a core each. To be
    called before JAX looks for devices; does nothing after that, or where their number is set.
    """
    if jax.config.jax_num_cpu_devices != -1 or "host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    ):
        return
    counts = [
        count
        for count in range(1, cores() + 1)
        if batch_size % count == 0 and batch_size >= count * _SMALLEST_SHARE
    ]
    with contextlib.suppress(RuntimeError):  # JAX has looked already
        jax.config.update("jax_num_cpu_devices", max(counts, default=1))


def choose_devices(count: int, batch_size: int) -> list[jax.Device]:
    """Picks the devices that play one game.

    Args:
      count: how many; 0 for all there are.
      batch_size: the global batch, which must divide evenly over them.

    Raises:
      ConfigError: there are fewer devices, or the batch does not divide.
    """
    found = jax.devices()
    count = count or len(found)
    if count > len(found):
        where = "this machine has" if jax.process_count() == 1 else "all processes together have"
        raise ConfigError(f"devices={count}, but {where} {len(found)}.")
    if count > batch_size:
        raise ConfigError(
            f"a game of batch_size={batch_size} is played by at most as many devices, not {count}: "
            "name fewer with --config.devices, or fill them with many games (`adadfq sweep`)."
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
            f"devices={count} are not the same number in each of {len(shares)} processes; choose "
            f"all {len(found)} (--config.devices=0)."
        )
    return chosen


def part_of_process(devices: list[jax.Device]) -> tuple[list[jax.Device], int, int]:
    """Returns this process's devices among those given, its index and the number of processes."""
    processes = sorted({device.process_index for device in devices})
    own = jax.process_index()
    mine = [device for device in devices if device.process_index == own]
    return mine, processes.index(own), len(processes)
