"""What a machine is: its devices, versions and processor, printed as one JSON object.

A program of its own, since a process that has looked for devices keeps them from the next one.
"""

import datetime
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from adadfq_jax.benchmarks.serving import processor
from adadfq_jax.devices import machine, memory

SOURCE = Path(__file__).parents[2]

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch")
_COMMIT = ("git", "-C", str(SOURCE), "describe", "--always", "--dirty", "--exclude=*")
_CARD = ("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader,nounits")


def facts() -> dict[str, Any]:
    """Returns what this machine is; looks for JAX's devices.

    Returns:
      `platform`, `kind` and `devices`, the number of the devices; `memory`, of one in bytes, None
      where it is not known; `runtime`, of JAX's backend; `driver`, of an NVIDIA card; `processor`
      and `cores`; `versions` of Python and packages; `commit` of the source, None where git does
      not tell; `date`.
    """
    devices = jax.devices()
    driver, card_memory = _card()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "devices": len(devices),
        # Of a card JAX says only what it takes of it.
        "memory": card_memory or memory.memory_bytes(devices[0], len(devices)),
        "runtime": devices[0].client.platform_version.splitlines()[0],
        "driver": driver,
        "processor": processor()["processor"],
        "cores": machine.cores(),
        "versions": {"python": platform.python_version()} | _versions(),
        "commit": _said(_COMMIT),
        "date": datetime.date.today().isoformat(),
    }


def _card() -> tuple[str | None, int | None]:
    """Returns the driver and the memory in bytes of an NVIDIA card; None where there is none."""
    found = re.fullmatch(r"([\d.]+), (\d+)", _said(_CARD) or "")
    return (found[1], int(found[2]) * 2**20) if found else (None, None)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _said(command: Sequence[str]) -> str | None:
    """Returns the first line that a program prints; None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split("\n")
    return lines[0].strip() or None if done.returncode == 0 else None


if __name__ == "__main__":
    print(json.dumps(facts()))
