"""What a machine is: its devices, versions and processor, printed as one JSON object.

A program of its own, since a process that has looked for devices keeps them from the next one.
"""

import datetime
import importlib.metadata
import json
import platform
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
_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def facts() -> dict[str, Any]:
    """Returns what this machine is; looks for JAX's devices.

    Returns:
      `platform`, `kind` and `devices`, the number of the devices; `memory`, of one in bytes, None
      where it is not known; `runtime`, of JAX's backend; `driver`, of an NVIDIA card; `processor`
      and `cores`; `versions` of Python and packages; `commit` of the source, None where git does
      not tell; `date`.
    """
    devices = jax.devices()
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "devices": len(devices),
        "memory": memory.memory_bytes(devices[0], len(devices)),
        "runtime": devices[0].client.platform_version.splitlines()[0],
        "driver": _said(_DRIVER),
        "processor": processor()["processor"],
        "cores": machine.cores(),
        "versions": {"python": platform.python_version()} | _versions(),
        "commit": _said(_COMMIT),
        "date": datetime.date.today().isoformat(),
    }


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
