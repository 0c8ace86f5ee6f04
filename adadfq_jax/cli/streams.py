"""The process's output, which fails neither for its encoding nor for a reader that is gone."""

import errno
import io
import os
import sys

# A pipe that nobody reads any more, a terminal that was closed, no stream at all.
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)


class _Outlet(io.FileIO):
    """A file descriptor that takes what nobody reads."""

    def write(self, content) -> int:
        """Writes bytes, and drops them where the reader is gone."""
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return memoryview(content).nbytes


def make_output_safe() -> None:
    """Replaces stdout and stderr, for this whole process, by streams that never fail.

    What their encoding lacks is written with backslashes. A reader that closes a pipe
    (`adadfq quantize … | head -3`) ends the output and not the run.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed before this process began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (to the process's end)
            continue
        stream.flush()
        outlet = io.BufferedWriter(_Outlet(descriptor, "w", closefd=False))
        safe = io.TextIOWrapper(
            outlet,
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.isatty() or name == "stderr",
        )
        setattr(sys, name, safe)


def finish_output() -> bool:
    """Writes what is left of stdout; tells whether all of it was written, and says why not."""
    try:
        sys.stdout.flush()
    except OSError as error:  # a file on a full disk
        print(f"adadfq: the output cannot be written: {error.strerror}.", file=sys.stderr)
        # Python would try once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return False
    return True
