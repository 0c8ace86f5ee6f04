"""What stands in the text of a compiled program: its instructions, their sizes, its collectives."""

import collections
import dataclasses
import functools
import math
import re

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(
    rf"= (?P<types>.+?) (?P<kind>{'|'.join(_COLLECTIVES)})(?P<start>-start)?\("
)
_TYPE = re.compile(r"(?P<type>[a-z]+\d+\w*|pred)\[(?P<shape>[\d,]*)\]")
_COMMENT = re.compile(r"/\*.*?\*/")
_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"\s+(ROOT )?%?(?P<name>[\w.\-]+) = (?P<types>\(.*?\)|\S+) (?P<kind>[\w\-]+)"
    r"\((?P<arguments>.*?)\)(?P<rest>, .*|$)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program.

    Attributes:
      name: its name in its computation.
      types: its results, as in `f32[16,8]{1,0}`, in parentheses if there are several.
      kind: its operation, such as `fusion`.
      arguments: its operands, or, of a parameter, its number.
      rest: what follows the arguments.
    """

    name: str
    types: str
    kind: str
    arguments: str
    rest: str

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """The names of its operands."""
        return tuple(re.findall(r"%([\w.\-]+)", self.arguments))


def computations(text: str) -> tuple[str, dict[str, dict[str, Instruction]]]:
    """Reads a compiled program.

    Args:
      text: the program, from `jax.stages.Compiled.as_text`.

    Returns:
      (name of the entry, instructions by name, by computation).
    """
    entry, found = "", {}
    for line in text.splitlines():
        line = _COMMENT.sub("", line)
        if not line.startswith(" ") and (begins := _COMPUTATION.match(line)):
            current = found[begins["name"]] = {}
            entry = begins["name"] if begins["entry"] else entry
        elif found and (one := _INSTRUCTION.match(line)):
            fields = one.group("name", "types", "kind", "arguments", "rest")
            current[one["name"]] = Instruction(*fields)
    return entry, found


def shapes(types: str) -> list[tuple[int, ...]]:
    """Returns the shapes of an instruction's results, in their order."""
    return [tuple(map(int, filter(None, one["shape"].split(",")))) for one in _TYPE.finditer(types)]


def sizes(types: str) -> list[int]:
    """Returns the bytes of an instruction's results, in their order."""
    widths = (_width(one["type"]) for one in _TYPE.finditer(types))
    return [math.prod(shape) * width for shape, width in zip(shapes(types), widths, strict=True)]


def _width(name: str) -> int:
    """Returns the size in bytes of a number of an HLO type, such as `bf16`."""
    digits = re.search(r"\d+", name)
    return max(int(digits[0]) // 8, 1) if digits else 1  # pred


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """Returns (number, bytes of results) of a compiled program's collectives, by kind.

    Args:
      text: the program, from `jax.stages.Compiled.as_text`.
    """
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for found in _COLLECTIVE.finditer(text):
        each = sizes(found["types"])
        if found["start"] and found["kind"] != "all-reduce":
            # The tuple holds operands, results and, for some kinds, semaphores: results are kept.
            each = each[len(each) // 2 :] if found["kind"] == "all-gather" else each[1:2]
        counts[found["kind"]][0] += 1
        counts[found["kind"]][1] += sum(each)
    return {kind: tuple(numbers) for kind, numbers in counts.items()}


def is_collective(kind: str) -> bool:
    """Returns whether an operation of this kind begins a collective."""
    return kind.removesuffix("-start") in _COLLECTIVES
