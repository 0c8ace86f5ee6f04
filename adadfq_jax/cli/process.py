"""What a verb does to its process: signals, warnings, the cache of compiled programs."""

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def plain_speech() -> Iterator[None]:
    """Shows warnings as one line each."""

    def show_warning(message, category, filename, lineno, file=None, line=None):
        del category, filename, lineno, file, line
        print(f"warning: {message}", file=sys.stderr)

    before, warnings.showwarning = warnings.showwarning, show_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def show_unraisable(unraisable) -> None:
    """Shows what could not be raised, but for what says nothing."""
    # From tensorstore's threads, when the first damaged array has ended a checkpoint's reading.
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def keep_compiled_programs(folder: str) -> None:
    """Lets JAX keep compiled programs in a folder; none for an empty name."""
    import jax

    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)


def need_no_devices() -> None:
    """Keeps JAX on the CPU in a process that compiles for devices which are not here.

    JAX's CUDA plugin would else look for CUDA's libraries, and not be there without them.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")


def divide_cpu_for(config: Any) -> None:
    """Divides the CPU for a game, before it checks its configuration and JAX looks for devices."""
    from adadfq_jax.config.checks import check_alone
    from adadfq_jax.devices import machine

    check_alone(config.to_dict(), "batch_size")
    machine.divide_cpu(config.batch_size)


@contextlib.contextmanager
def acknowledging() -> Iterator[None]:
    """Says at once that a SIGINT or SIGTERM has come, which Python would tell this program later.

    Python runs a handler between two of its own instructions, and a compilation or a step is one
    instruction. A thread reads what the system's handler writes down, says so, and lets a second
    signal end the process, whatever it is doing. Does nothing in other threads than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_acknowledge, args=(reader,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)


def _acknowledge(reader: int) -> None:
    """Says of each signal in a pipe that it has come, until the pipe's other end is closed."""
    come = 0
    while number := os.read(reader, 1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        come += 1
        name = signal.Signals(number[0]).name
        if come > 1:
            print(f"{name} again: ended.", file=sys.stderr, flush=True)
            for child in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)
            os._exit(128 + number[0])
        print(
            f"{name}: stopping after what is under way, a step, a measurement or a compilation; "
            f"{name} again ends at once.",
            file=sys.stderr,
            flush=True,
        )


def _children() -> list[int]:
    """Returns the processes that this one has started, as far as the system tells: Linux does."""
    found = Path("/proc/self/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


@contextlib.contextmanager
def listening() -> Iterator[list[int | None]]:
    """Collects SIGTERM and SIGINT, so that a run can end between two steps; a second one kills."""
    received: list[int | None] = [None]

    def receive(number, _frame):
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
