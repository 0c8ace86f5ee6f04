"""What the verb `allocate` checks before a network is opened, and says at its end."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from adadfq_jax.allocation.chosen import PICTURE, Allocation
from adadfq_jax.config.bits_file import is_bits_file
from adadfq_jax.errors import ConfigError
from adadfq_jax.quantization.bits import named_file
from adadfq_jax.storage.files import check_folder_of, check_replaceable, locate


def check_output(output: str | Path, *, overwrite: bool) -> None:
    """Makes sure that the file can be written, and be named in `quant.overrides`.

    Raises:
      ConfigError: it is no .json file, something is there already, or there is no such folder.
    """
    if named_file(f"@{output}") is None:
        raise ConfigError(f"--output={output} must end in .json, as quant.overrides names it.")
    path = locate(output)
    check_replaceable(path, "a file of bit-widths", is_bits_file, overwrite)
    picture = path.with_suffix(PICTURE)
    check_replaceable(picture, "its picture", lambda _: is_bits_file(path), overwrite)
    check_folder_of(path)


def bit_widths(texts: Sequence[str]) -> tuple[int, ...]:
    """Reads the bit-widths of --choices.

    Raises:
      ConfigError: one is no whole number.
    """
    if wrong := [text for text in texts if not re.fullmatch(r"\s*\d{1,9}\s*", text)]:
        raise ConfigError(f"--choices must be bit-widths such as 2,3,4, not {wrong[0]!r}.")
    return tuple(map(int, texts))


def _entry(output: str) -> str:
    """Returns the value of the field, in the form that takes any letters where it must."""
    plain = re.fullmatch(r"[\w./-]+", output)
    return f"@{output}" if plain else repr((f"@{output}",))


def files_and_next(found: Allocation, teacher: str, output: str) -> str:
    """Returns which files there are, and the command that goes on from them."""
    bits = found.uniform_bits
    words = [
        "adadfq",
        "quantize",
        f"--config=teacher:w{bits}a{bits}",
        f"--config.teacher.path={teacher}",
        f"--config.quant.overrides={_entry(output)}",
        *(["--config.quant.sums=True"] if found.sums else []),
        "--config.game.method=adadfq_plus",
        "--config.epochs=24",
        "--config.calibration_epochs=2",
        "--config.warmup_epochs=2",
        "--workdir=runs/mixed",
    ]
    picture = Path(output).with_suffix(PICTURE)
    return f"{'files':<22}{output}, {picture}\n\nnext:\n  {shlex.join(words)}"
