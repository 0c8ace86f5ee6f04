"""Output that nobody reads, or that its encoding cannot hold, ends no verb."""

import os
import subprocess
import sys

import pytest

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def adadfq(*words, **options):
    command = [sys.executable, "-m", "adadfq_jax", *words]
    environment = os.environ | ENVIRONMENT | options.pop("env", {})
    return subprocess.Popen(command, env=environment, **options)


@pytest.mark.parametrize("name", ["PYTHONIOENCODING=ascii", "LC_ALL=C", "PYTHONIOENCODING=latin-1"])
def test_output_does_not_fail_for_its_encoding(name):
    variable, _, value = name.partition("=")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = adadfq("sweep", "--help", env={variable: value}, **pipes)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert b"usage: adadfq sweep" in out
    words = ("evaluate", "--teacher=größe\udcff.pth", "--bits=w4a4")
    process = adadfq(*words, env={variable: value}, **pipes)
    out, err = process.communicate()
    assert (process.returncode, out) == (2, b"")
    assert b"there is no teacher file" in err
    assert b"Traceback" not in err


def test_a_reader_that_is_gone_ends_the_output_alone():
    process = adadfq("--help", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # before anything was written
    with process.stderr:
        err = process.stderr.read()
    assert (process.wait(), err) == (0, b"")
    # Neither stream there at all, as with `>&- 2>&-`.
    command = f"exec '{sys.executable}' -m adadfq_jax evaluate --teacher=none.pth >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], env=os.environ | ENVIRONMENT).returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_told_of():
    with open("/dev/full", "w") as full:
        process = adadfq("--help", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate()
    assert process.returncode == 2
    assert err == b"adadfq: the output cannot be written: No space left on device.\n"
