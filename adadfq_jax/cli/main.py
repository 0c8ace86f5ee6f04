"""Runs a verb, and turns exceptions into one sentence and an exit code.

Exit codes: 0 complete; 2 bad input; 3 the run diverged; 4 a verification failed; 75 stopped by a
signal, 130 by Ctrl-C, both with a checkpoint written once `quantize` plays; 75 too where Cloud
Storage is not reached. After 75 the same command goes on.
"""

import os
import signal
import sys
from collections.abc import Sequence

from adadfq_jax import __version__
from adadfq_jax.cli.flags import asks_for_help, describe, one_line, parse
from adadfq_jax.cli.process import acknowledging, plain_speech, show_unraisable
from adadfq_jax.cli.streams import finish_output, make_output_safe
from adadfq_jax.cli.table import EXAMPLES, FLAGS
from adadfq_jax.cli.verbs import JOB, VERBS
from adadfq_jax.errors import (
    AdaDFQError,
    ConfigError,
    DivergedError,
    StoppedError,
    StorageError,
    VerificationError,
    nearest,
)

_COMPLETE, _BAD_INPUT, _DIVERGED, _UNVERIFIED, _INTERRUPTED = 0, 2, 3, 4, 130

_STOPPED = os.EX_TEMPFAIL  # 75


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a verb and ends the process with its exit code."""
    make_output_safe()
    argv = sys.argv[1:] if argv is None else argv
    _announce(argv)
    # To the very end, when tensorstore's threads may still say it.
    sys.unraisablehook = show_unraisable
    code = run(argv)
    sys.exit(code or (_COMPLETE if finish_output() else _BAD_INPUT))


def _announce(argv: Sequence[str]) -> None:
    """Says that a verb begins, before JAX is imported; a sweep says it for its jobs."""
    if argv and argv[0] in VERBS and not asks_for_help(argv) and JOB not in argv:
        print(f"adadfq {argv[0]}: starting; loading JAX takes some seconds", file=sys.stderr)


def run(argv: Sequence[str]) -> int:
    """Runs a verb.

    Args:
      argv: the verb and its flags.

    Returns:
      The exit code.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return _COMPLETE if argv else _BAD_INPUT
    if argv[0] == "--version":
        print(f"adadfq_jax {__version__}")
        return _COMPLETE
    verb, *rest = argv
    try:
        if verb not in VERBS:
            raise ConfigError(f"unknown verb {verb!r}: {nearest(verb, VERBS)}")
        if asks_for_help(rest):
            print(describe(verb, VERBS[verb].__doc__, FLAGS[verb], EXAMPLES[verb]))
            return _COMPLETE
        from adadfq_jax.devices import memory  # imports JAX, for seconds

        memory.keep()
        with plain_speech(), acknowledging():
            VERBS[verb](parse(verb, FLAGS[verb], rest))
    except AdaDFQError as error:
        print(f"adadfq {verb}: {one_line(error)}", file=sys.stderr)
        return _exit_code(error)
    except OSError as error:  # a full disk, a folder without permission
        print(f"adadfq {verb}: {one_line(error)}.", file=sys.stderr)
        return _BAD_INPUT
    except KeyboardInterrupt:
        print(f"adadfq {verb}: stopped by Ctrl-C.", file=sys.stderr)
        return _INTERRUPTED
    return _COMPLETE


def _exit_code(error: AdaDFQError) -> int:
    match error:
        case DivergedError():
            return _DIVERGED
        case StorageError():
            return _STOPPED
        case VerificationError():
            return _UNVERIFIED
        case StoppedError():
            return _INTERRUPTED if error.signal == signal.SIGINT else _STOPPED
    return _BAD_INPUT


def _usage() -> str:
    verbs = "\n".join(f"  {name:<12}{function.__doc__}" for name, function in VERBS.items())
    return f"usage: adadfq VERB [--flag=value …]\n\n{verbs}\n\nadadfq VERB --help tells its flags."
