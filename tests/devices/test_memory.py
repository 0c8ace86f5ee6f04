"""Freed memory is kept, and taken again without page faults."""

import platform
import subprocess
import sys

import pytest

_COUNT = """
import ctypes, resource
from adadfq_jax.devices import memory
if {keep}:
    memory.keep()
    memory.keep_if_it_fits(10**9, {available} * 10**9)
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
def use():
    blocks = [c.malloc({size}) for _ in range(2)]
    for block in blocks:
        for offset in range(0, {size}, {stride}):
            ctypes.memset(block + offset, 1, 1)
    for block in blocks:
        c.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("megabytes", "stride"), [(40, 2**12), (1200, 2**20)])
def test_freed_memory_is_kept(megabytes, stride):
    """Two blocks, ten times: at least a fault for every two bytes that are written, or none.

    None, that is, where six times what is needed fits the memory that there is.
    """
    size = megabytes * 2**20
    faults = {
        (keep, available): int(
            subprocess.run(
                [
                    sys.executable,
                    "-c",
                    _COUNT.format(keep=keep, available=available, size=size, stride=stride),
                ],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for keep, available in ((False, 0), (True, 6), (True, 5))
    }
    assert faults[False, 0] >= 10 * size // stride
    assert faults[True, 6] < 100
    assert faults[True, 5] >= 10 * size // stride
