"""What the verb `quantize` says at its end: what was measured, sizes, and the next commands."""

import shlex
import shutil
import sys
from pathlib import Path

import adadfq_jax
from adadfq_jax.errors import EXTRAS, missing_packages
from adadfq_jax.models.network import Student, flatten
from adadfq_jax.models.size import packed_bytes
from adadfq_jax.storage.files import is_remote, locate

# What the next commands need besides the package itself.
_EXTRAS = ("export", "report")


def ending(student: Student, workdir: str) -> str:
    """Returns the end of a run: what was measured first, then sizes, files and next commands."""
    result = student.result.to_text([("size", _size(student)), ("files", workdir)])
    commands = "\n".join(f"  {command}" for command in next_commands(student, workdir))
    return f"{result}\n\nnext:\n{commands}"


def _size(student: Student) -> str:
    whole, packed = (
        packed_bytes(flatten(network.variables)) for network in (student.teacher, student)
    )
    return (
        f"{packed / 1000:,.0f} kB of packed numbers, {whole / packed:.1f} times less than the "
        f"teacher's {whole / 1000:,.0f} kB; a file adds what it says of itself"
    )


def next_commands(student: Student, workdir: str) -> list[str]:
    """Returns commands that go on from a finished run, ready to paste, with what they need first.

    Args:
      student: of the run.
      workdir: the run's folder, as it was given.
    """
    folder = f"--workdir={workdir}"
    images = (
        [] if student.result.evaluation_images else ["--source=npz", "--path=YOUR_TEST_IMAGES.npz"]
    )
    output = "student.onnx" if is_remote(locate(workdir)) else str(Path(workdir, "student.onnx"))
    exists = Path(output).exists()
    lines = [
        ["evaluate", folder, *images],
        ["export", folder, f"--output={output}", *(["--overwrite"] if exists else [])],
        ["report", folder],
    ]
    commands = [shlex.join([*_program(), *words]) for words in lines]
    missing = [extra for extra in _EXTRAS if missing_packages(extra)]
    return [*([_install(missing)] if missing else []), *commands]


def _install(extras: list[str]) -> str:
    """Returns the command that installs what is missing for the others."""
    script = Path(adadfq_jax.__file__).parents[1] / "launch" / "local.sh"
    if script.is_file():
        return f"{_shortest(script)} --with={','.join(extras)}"
    packages = [name for extra in extras for name in EXTRAS[extra]]
    return shlex.join([sys.executable, "-m", "pip", "install", *packages])


def _program() -> list[str]:
    """Returns the words that call this program from a shell."""
    script = Path(sys.executable).with_name("adadfq")
    if not script.is_file():
        return [sys.executable, "-m", "adadfq_jax"]
    return ["adadfq" if shutil.which("adadfq") == str(script) else _shortest(script)]


def _shortest(path: Path) -> str:
    """Returns a path from here where it lies below, else the whole one."""
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)
