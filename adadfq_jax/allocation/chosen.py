"""An allocation: the bit-widths that were chosen, what they cost, and what they are taken to do."""

import dataclasses
import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adadfq_jax.allocation.budget import KINDS, Budget, level_of
from adadfq_jax.allocation.cost import ACTIVATION, WEIGHT, Costs, Item
from adadfq_jax.allocation.table import allocation_table
from adadfq_jax.config.bits_file import write_bits
from adadfq_jax.models.network import Teacher, flatten
from adadfq_jax.models.size import packed_bytes
from adadfq_jax.storage.files import locate, write_whole

PICTURE = ".png"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Allocation:
    """Bit-widths by layer, with all that was measured to choose them.

    Distances are those of `sensitivity`. The *level* of bit-widths is their average or, of a budget
    of bit operations, the bits of the uniform student with as many.

    Attributes:
      teacher: the network that they are for.
      sums: whether they are for a student of `quant.sums`.
      budget: what bounds them.
      costs: of the network.
      items: what gets bits.
      choices: bit-widths that there were to choose from.
      fixed: entries of `quant.overrides` that were given.
      groups: names of the rules by which layers share bits.
      columns: the bit-widths of `distances`: the choices and those of what is fixed.
      distances: (items, columns), with only that quantized; infinite where not allowed.
      bits: (items,), what was chosen.
      images: how many images were measured on.
      kinds: of which kinds, in words.
      held_out: as many other images of these kinds.
      curve: (level, sum of distances) of the best choices under other budgets.
      compared: of random allocations within the budget, (sum of distances, distance of the whole).
    """

    teacher: Teacher
    sums: bool
    budget: Budget
    costs: Costs
    items: tuple[Item, ...]
    choices: tuple[int, ...]
    fixed: tuple[str, ...]
    groups: tuple[str, ...]
    columns: tuple[int, ...]
    distances: np.ndarray
    bits: np.ndarray
    images: int
    kinds: str
    held_out: np.ndarray
    curve: tuple[tuple[float, float], ...] = ()
    compared: tuple[tuple[float, float], ...] = ()

    def __repr__(self) -> str:
        """The table, for a notebook."""
        return self.to_text()

    @property
    def overrides(self) -> tuple[str, ...]:
        """Entries of `quant.overrides`."""
        chosen = tuple(
            f"{glob.escape(item.layer)}={item.kind[0]}{bits}"
            for item, bits in zip(self.items, self.bits, strict=True)
        )
        return self.fixed + chosen

    def by_name(self, bits: Sequence[int]) -> dict[tuple[str, str], int]:
        """Returns bit-widths of the items by (layer, kind)."""
        return {
            (item.layer, item.kind): int(width)
            for item, width in zip(self.items, bits, strict=True)
        }

    def uniform(self, bits: int) -> np.ndarray:
        """Returns the bit-widths where all have the same one that may have it, (items,)."""
        column = self.columns.index(bits)
        only = np.isfinite(self.distances).argmax(1)  # the first, of what is fixed the only one
        may = np.isfinite(self.distances[:, column])
        return np.array(self.columns)[np.where(may, column, only)]

    def predicted(self, bits: Sequence[int]) -> float:
        """Returns the sum of the distances of each item alone."""
        columns = [self.columns.index(width) for width in bits]
        return float(self.distances[np.arange(len(self.items)), columns].sum())

    def average(self, kind: str, bits: Sequence[int]) -> float:
        """Returns average bits of `weight` or `activation` over their elements."""
        of_kind = [
            (item.elements, width)
            for item, width in zip(self.items, bits, strict=True)
            if item.kind == kind
        ]
        return sum(count * width for count, width in of_kind) / sum(count for count, _ in of_kind)

    def level_of(self, bits: Sequence[int]) -> float:
        """Returns the level of bit-widths: the larger average of what the budget is of."""
        if self.budget.measure == "bitops":
            return level_of(self.costs, self.costs.bit_operations(self.by_name(bits)))
        return max(self.average(kind, bits) for kind in KINDS[self.budget.of])

    def packed_bytes(self, bits: Sequence[int]) -> int | None:
        """Returns the bytes of a student's packed numbers; None where kernels have no bits here."""
        named = {f"bits/{layer}/{kind}": width for (layer, kind), width in self._all(bits).items()}
        return packed_bytes(flatten(self.teacher.variables), named) if self._weights else None

    @property
    def _weights(self) -> bool:
        return WEIGHT in KINDS[self.budget.of]

    def _all(self, bits: Sequence[int]) -> dict[tuple[str, str], int]:
        """With any number for activations that have no bits here, of which no size depends."""
        return {(item.layer, item.kind): 8 for item in self.costs.of((ACTIVATION,))} | self.by_name(
            bits
        )

    @property
    def uniform_bits(self) -> int:
        """The largest bit-width that is within the budget where all have it."""
        within = [bits for bits in self.choices if bits <= self.budget.level]
        return max(within, default=self.choices[0])

    @property
    def correlation(self) -> float | None:
        """Spearman's rank correlation of sum and whole; None where nothing was compared."""
        if len(self.compared) < 2:
            return None
        from scipy.stats import spearmanr  # an extra

        return float(spearmanr(*zip(*self.compared, strict=True)).statistic)

    def described(self) -> dict[str, Any]:
        """Returns how they were found, as JSON can hold it."""
        return {
            "budget": self.budget.level,
            "budget_of": self.budget.of,
            "measure": self.budget.measure,
            "choices": self.choices,
            "fixed": self.fixed,
            "groups": self.groups,
            "level": self.level_of(self.bits),
            "packed_bytes": self.packed_bytes(self.bits),
            "distance": self.predicted(self.bits),
            "images": f"{self.images} {self.kinds}",
            "correlation": self.correlation,
            "compared": self.compared,
            "curve": self.curve,
            "uniform": {bits: self._point(self.uniform(bits)) for bits in self.choices},
            "layers": [
                {
                    "layer": item.layer,
                    "kind": item.kind,
                    "elements": item.elements,
                    "bits": int(bits),
                    "distances": {
                        width: distance
                        for width, distance in zip(self.columns, row.tolist(), strict=True)
                        if math.isfinite(distance)
                    },
                }
                for item, bits, row in zip(self.items, self.bits, self.distances, strict=True)
            ],
        }

    def to_text(self) -> str:
        """Returns the table."""
        return allocation_table(self)

    def save(self, path: str | Path) -> None:
        """Writes the file that `quant.overrides` names, `@bits.json`, and a picture beside it.

        Args:
          path: the file; the picture has the suffix .png.
        """
        from adadfq_jax.reporting.allocation_figure import draw_allocation  # matplotlib is an extra

        about = self.described()
        picture = draw_allocation(about).png
        write_bits(path, self.teacher, self.overrides, sums=self.sums, about=about)
        write_whole(locate(path).with_suffix(PICTURE), picture)

    def _point(self, bits: Sequence[int]) -> tuple[float, float]:
        return self.level_of(bits), self.predicted(bits)
