"""The integer program: the bit-widths of least total distance within a budget."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from adadfq_jax.errors import ConfigError

# A solution may be worse than the best one by this share.
_GAP = 1e-4


@dataclasses.dataclass(frozen=True)
class Limit:
    """A cost and its upper bound.

    Attributes:
      costs: (items, choices), integers: what each item costs at each bit-width.
      most: the bound of their sum and of that of the products.
      products: (first item, second item, factor): costs of two items at once, factor times the
        product of both bit-widths.
    """

    costs: np.ndarray
    most: float
    products: Sequence[tuple[int, int, int]] = ()


def choose(
    distances: np.ndarray,
    choices: Sequence[int],
    limits: Sequence[Limit],
    groups: Sequence[Sequence[int]] = (),
) -> np.ndarray | None:
    """Chooses a bit-width for each item so that the sum of distances is least.

    One binary variable says whether an item has a bit-width. A product of two bit-widths is made
    linear by one more variable for each pair of them, whose sums over either are the binary ones.

    Args:
      distances: (items, choices); infinite where an item cannot have a bit-width.
      choices: the bit-widths.
      limits: upper bounds that all hold.
      groups: indices of items that have the same bit-width.

    Returns:
      (items,), the index of each item's choice; None where nothing is within the limits.

    Raises:
      ConfigError: the solver ends without a solution and without a proof that there is none.
    """
    from scipy import optimize, sparse  # an extra

    items, count = distances.shape
    pairs = list(dict.fromkeys(pair[:2] for limit in limits for pair in limit.products))
    binaries = items * count
    variables = binaries + len(pairs) * count**2
    rows: list[dict[int, float]] = []
    lower: list[float] = []
    upper: list[float] = []

    def constrain(coefficients: dict[int, float], least: float, most: float) -> None:
        rows.append(coefficients)
        lower.append(least)
        upper.append(most)

    for item in range(items):
        constrain({item * count + choice: 1 for choice in range(count)}, 1, 1)
    for first, *others in groups:
        for other in others:
            for choice in range(count):
                constrain({first * count + choice: 1, other * count + choice: -1}, 0, 0)
    for number, pair in enumerate(pairs):
        start = binaries + number * count**2
        square = start + np.arange(count**2).reshape(count, count)
        for item, table in zip(pair, (square, square.T), strict=True):
            for choice in range(count):
                sums = dict.fromkeys(table[choice].tolist(), 1.0)
                constrain(sums | {item * count + choice: -1}, 0, 0)
    for limit in limits:
        # In the largest unit in which all costs are whole, so that no solution within the solver's
        # tolerance is above the bound.
        factors = [factor for *_, factor in limit.products]
        unit = math.gcd(*limit.costs.ravel().tolist(), *factors)
        costs = dict(enumerate((limit.costs // unit).ravel().tolist()))
        for first, second, factor in limit.products:
            start = binaries + pairs.index((first, second)) * count**2
            table = factor // unit * np.outer(choices, choices)
            costs |= dict(enumerate(table.ravel().tolist(), start))
        constrain(costs, -np.inf, math.floor(limit.most / unit))
    matrix = sparse.csr_array(
        (
            [value for row in rows for value in row.values()],
            (
                [index for index, row in enumerate(rows) for _ in row],
                [place for row in rows for place in row],
            ),
        ),
        shape=(len(rows), variables),
    )
    possible = np.isfinite(distances).ravel()
    objective = np.zeros(variables)
    objective[:binaries] = np.where(possible, distances.ravel(), 0)
    largest = np.ones(variables)
    largest[:binaries] = possible
    with _silent():
        solved = optimize.milp(
            objective / max(np.abs(objective).max(), np.finfo(float).tiny),
            integrality=np.arange(variables) < binaries,
            bounds=optimize.Bounds(0, largest),
            constraints=optimize.LinearConstraint(matrix, lower, upper),
            options={"mip_rel_gap": _GAP},
        )
    if solved.status == _INFEASIBLE:
        return None
    if solved.x is None:
        raise ConfigError(f"the integer program was not solved: {solved.message}")
    return solved.x[:binaries].reshape(items, count).argmax(1)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drops what is written to stdout: scipy's solver prints lines of its own debugging there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


_INFEASIBLE = 2  # of scipy.optimize.milp's status
