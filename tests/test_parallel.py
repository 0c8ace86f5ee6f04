"""How many CPU devices a process gets."""

import subprocess
import sys

import pytest

_COUNT = """
import os
os.sched_getaffinity = lambda process: range({cores})
import jax
from adadfq_jax import parallel
parallel.divide_cpu({batch})
parallel.divide_cpu(1)
print(len(jax.devices("cpu")))
parallel.divide_cpu(16)
"""


@pytest.mark.parametrize(
    ("cores", "batch", "environment", "devices"),
    [
        (2, 16, {}, 2),
        (3, 16, {}, 2),
        (64, 16, {}, 4),
        (2, 15, {}, 1),
        (2, 6, {}, 1),
        (2, 0, {}, 1),
        (2, 16, {"JAX_NUM_CPU_DEVICES": "3"}, 3),
        (2, 16, {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_cpu_devices(cores, batch, environment, devices, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run(
        [sys.executable, "-c", _COUNT.format(cores=cores, batch=batch)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == devices
