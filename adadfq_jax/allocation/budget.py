"""A budget: average bits, bytes of packed numbers, or bit operations, as limits of the program."""

import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

from adadfq_jax.allocation.choice import Limit
from adadfq_jax.allocation.cost import ACTIVATION, WEIGHT, Costs, Item
from adadfq_jax.errors import ConfigError, nearest
from adadfq_jax.models.size import codes_bytes

MEASURES = ("size", "bitops")
KINDS = {"weights": (WEIGHT,), "activations": (ACTIVATION,), "both": (WEIGHT, ACTIVATION)}

_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_OPERATIONS = {"M": 10**6, "G": 10**9, "T": 10**12}
_WRITTEN = re.compile(r"(?P<number>\d{1,15}(?:\.\d{1,15})?)\s*(?P<unit>[A-Za-z]*)")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much bits may cost.

    Attributes:
      level: average bits; of bit operations, the bits of the uniform student with as many.
      measure: `size` or `bitops`.
      of: `weights`, `activations` or `both`.
      most_bytes: of a budget in bytes, those of the packed kernels' codes; else None.
    """

    level: float
    measure: str
    of: str
    most_bytes: int | None = None

    def limits(self, costs: Costs, items: Sequence[Item], choices: Sequence[int]) -> list[Limit]:
        """Returns the limits of the integer program.

        Args:
          costs: of the network.
          items: what gets bits.
          choices: the bit-widths.
        """
        places = {(item.layer, item.kind): place for place, item in enumerate(items)}
        table = np.zeros((len(items), len(choices)), np.int64)
        if self.measure == "bitops":
            products = []
            for product in costs.products:
                kernel = places[product.layer, WEIGHT]
                if product.source is None:
                    table[kernel] = product.macs * product.bits * np.array(choices)
                else:
                    source = places[product.source, ACTIVATION]
                    products.append((kernel, source, product.macs))
            return [Limit(table, operations(costs, self.level), tuple(products))]
        if self.most_bytes is not None:
            for place, item in enumerate(items):
                table[place] = [packed(item, bits) for bits in choices]
            return [Limit(table, self.most_bytes)]
        limits = []
        for kind in KINDS[self.of]:
            elements = np.array([item.elements if item.kind == kind else 0 for item in items])
            most = self.level * int(elements.sum())
            limits.append(Limit(elements[:, None] * np.array(choices), most))
        return limits

    def at(self, level: float) -> "Budget":
        """Returns the budget of the same kind of another level, for a curve."""
        return dataclasses.replace(self, level=level, most_bytes=None)


def read_budget(
    text: float | str,
    measure: str,
    of: str | None,
    costs: Costs,
    constant_bytes: int,
    choices: Sequence[int],
) -> Budget:
    """Reads a budget.

    Args:
      text: `4.0`, average bits; `170kB`, bytes of all packed numbers of the student; `650M`, bit
        operations of one image.
      measure: in `MEASURES`.
      of: in `KINDS`; None: of weights where it is in bytes, else of both.
      costs: of the network.
      constant_bytes: bytes of packed numbers that do not depend on the bits.
      choices: the bit-widths.

    Raises:
      ConfigError: the budget or a name is malformed, or there is nothing to choose within it.
    """
    for name, value, known in (("measure", measure, MEASURES), ("budget_of", of, KINDS)):
        if value is not None and value not in known:
            raise ConfigError(f"unknown {name} {value!r}: {nearest(value, known)}")
    match = _WRITTEN.fullmatch(str(text).strip())
    units = {"": 1, **_BYTES, **_OPERATIONS}
    if match is None or match["unit"] not in units:
        raise ConfigError(
            "a budget is written 4.0 (average bits), 170kB (bytes) or 650M (bit operations), not "
            f"{str(text)!r}."
        )
    unit, number = match["unit"], float(match["number"])
    value = number * units[unit]
    if unit in _BYTES and (measure != "size" or of not in (None, "weights")):
        raise ConfigError(
            f"a budget of {text} is of the size of weights: it needs measure=size and "
            "budget_of=weights."
        )
    if unit in _OPERATIONS and measure != "bitops":
        raise ConfigError(f"a budget of {text} bit operations needs measure=bitops.")
    if measure == "bitops" and of not in (None, "both"):
        raise ConfigError(
            "bit operations are of weights and activations: measure=bitops needs budget_of=both."
        )
    least, most = min(choices), max(choices)
    level, most_bytes = number, None
    if unit in _BYTES:
        most_bytes = math.floor(value) - constant_bytes
        level = 8 * most_bytes / sum(item.elements for item in costs.of((WEIGHT,)))
    elif unit:
        level = level_of(costs, value)
    if not least <= level <= most:
        side, end = ("below the smallest", least) if level < least else ("above the largest", most)
        takes = ""
        if unit in _BYTES:
            codes = sum(packed(item, end) for item in costs.items)
            takes = f", which takes {codes + constant_bytes:,} bytes"
        elif unit:
            takes = f", which takes {operations(costs, end) / 1e6:,.1f}M"
        raise ConfigError(f"a budget of {text} is {side} choice, {end} bits{takes}.")
    return Budget(level, measure, of or ("weights" if unit in _BYTES else "both"), most_bytes)


def packed(item: Item, bits: int) -> int:
    """Returns the bytes of a kernel's packed codes; 0 of an activation, which no file holds."""
    return codes_bytes(item.elements, bits) if item.kind == WEIGHT else 0


def operations(costs: Costs, level: float) -> float:
    """Returns the bit operations of one image at uniform bits, which need not be whole."""
    squared, linear = _operations(costs)
    return squared * level**2 + linear * level


def level_of(costs: Costs, most: float) -> float:
    """Returns the uniform bits, which need not be whole, with so many bit operations."""
    squared, linear = _operations(costs)
    return 2 * most / (linear + math.sqrt(linear**2 + 4 * squared * most))


def _operations(costs: Costs) -> tuple[int, int]:
    """Returns what the square of the bits, and the bits, are multiplied with."""
    squared = sum(product.macs for product in costs.products if product.source is not None)
    linear = sum(
        product.macs * product.bits for product in costs.products if product.source is None
    )
    return squared, linear
