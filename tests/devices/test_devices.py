"""How many CPU devices a process gets, and which accelerator."""

import os
import subprocess
import sys

import pytest

from adadfq_jax.devices import machine as machine_module
from adadfq_jax.devices.machine import shares_of_accelerators
from adadfq_jax.errors import ConfigError

_COUNT = """
import os
os.sched_getaffinity = lambda process: range(2)
import jax
from adadfq_jax.devices import machine
machine.divide_cpu(16)
machine.divide_cpu(1)
print(len(jax.devices("cpu")))
machine.divide_cpu(16)
"""


@pytest.mark.parametrize(
    ("cores", "batch", "devices"),
    [(2, 16, 2), (3, 16, 2), (64, 16, 4), (2, 15, 1), (2, 6, 1), (2, 0, 1)],
)
def test_a_batch_is_divided_evenly_and_not_too_far(cores, batch, devices):
    assert machine_module._cpu_devices(cores, batch) == devices


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, 2),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_cpu_devices(environment, devices):
    usual = {name: word for name, word in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", _COUNT],
        env=usual | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == devices


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that makes this machine one with PCI devices and GPUs."""
    monkeypatch.setattr(machine_module, "_PLUGGED_IN", tmp_path / "pci")
    monkeypatch.setattr(machine_module, "_GPUS", tmp_path / "gpus")
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)

    def make(pci=(), gpus=()):
        for maker, number in pci:
            folder = tmp_path / "pci" / str(len(list(tmp_path.glob("pci/*"))))
            folder.mkdir(parents=True)
            (folder / "vendor").write_text(f"{maker}\n")
            (folder / "device").write_text(f"{number}\n")
        for name in gpus:
            (tmp_path / "gpus" / name).mkdir(parents=True)

    return make


def test_each_job_has_a_chip_of_its_own(machine, monkeypatch):
    # Two v5e chips, and what the same and another maker have there besides.
    machine([("0x1ae0", "0x0063"), ("0x1ae0", "0x0042"), ("0x8086", "0x0063")])
    assert len(shares_of_accelerators(0)) == 1
    machine([("0x1ae0", "0x0063")])
    shares = shares_of_accelerators(0)
    assert [share["TPU_VISIBLE_CHIPS"] for share in shares] == ["0", "1"]
    assert len({share["TPU_PROCESS_PORT"] for share in shares}) == 2
    with pytest.raises(ConfigError, match="--jobs=3, but this machine has 2 TPU chips"):
        shares_of_accelerators(3)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert shares_of_accelerators(3) == [{}] * 3


def test_jobs_share_gpus(machine, monkeypatch):
    machine(gpus=("0000:01", "0000:02"))
    assert shares_of_accelerators(0) == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert (
        shares_of_accelerators(2)
        == [{"CUDA_VISIBLE_DEVICES": "3", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45"}] * 2
    )


def test_jobs_share_cores(machine):
    machine()
    assert shares_of_accelerators(0) == [{}] * machine_module.cores()
    assert shares_of_accelerators(7) == [{}] * 7
