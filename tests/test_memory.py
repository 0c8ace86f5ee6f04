"""Freed memory is kept, and taken again without page faults."""

import platform
import subprocess
import sys

import pytest

_COUNT = """
import ctypes, resource
from adadfq_jax import memory
if {keep}:
    memory.keep()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
def use():
    block = c.malloc({size})
    ctypes.memset(block, 1, {size})
    c.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """Forty MB, ten times: at 4 KB a page 100,000 faults, or none."""
    faults = {
        keep: int(
            subprocess.run(
                [sys.executable, "-c", _COUNT.format(keep=keep, size=40_000_000)],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for keep in (False, True)
    }
    assert faults[False] > 50_000
    assert faults[True] < 100
