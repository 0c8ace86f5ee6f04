"""The integer program against trying everything."""

import itertools
import os

import numpy as np
import pytest

from adadfq_jax.allocation.choice import Limit, _silent, choose

CHOICES = (2, 4, 8)


def cost(limit, chosen):
    """What a choice costs, by the definition of a limit."""
    bits = [CHOICES[index] for index in chosen]
    alone = sum(int(row[index]) for row, index in zip(limit.costs, chosen, strict=True))
    return alone + sum(factor * bits[one] * bits[other] for one, other, factor in limit.products)


def best_of_all(distances, limits, groups):
    within = [
        (sum(row[index] for row, index in zip(distances, chosen, strict=True)), chosen)
        for chosen in itertools.product(range(len(CHOICES)), repeat=len(distances))
        if all(cost(limit, chosen) <= limit.most for limit in limits)
        and all(len({chosen[item] for item in group}) == 1 for group in groups)
    ]
    return min(within, default=None)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_better(seed):
    random = np.random.default_rng(seed)
    items = 5
    distances = np.sort(random.random((items, 3)) * 10.0 ** -np.arange(3), 1)[:, ::-1]
    if seed % 3 == 0:
        distances[1, [0, 2]] = np.inf  # what is fixed
    elements = random.integers(1, 1000, items)
    costs = elements[:, None] * np.array(CHOICES)
    limits = [Limit(costs, int(elements.sum() * random.uniform(2, 6)))]
    if seed % 2:  # bit operations
        products = ((0, 3, 7), (1, 3, 50), (2, 4, 9))
        limits = [Limit(costs, int(limits[0].most * 2), products)]
    groups = [[0, 2]] if seed % 4 == 0 else []
    expected = best_of_all(distances, limits, groups)
    found = choose(distances, CHOICES, limits, groups)
    if expected is None:
        assert found is None
        return
    assert all(cost(limit, found) <= limit.most for limit in limits)
    assert distances[np.arange(items), found].sum() == pytest.approx(expected[0], rel=1e-3)


def test_a_budget_is_used_to_the_last_bit():
    costs = np.array([[3 * 2, 3 * 4, 3 * 8], [5 * 2, 5 * 4, 5 * 8]])
    distances = np.array([[9.0, 3, 1], [9.0, 3, 1]])
    assert choose(distances, CHOICES, [Limit(costs, 4 * 8)]).tolist() == [1, 1]
    assert choose(distances, CHOICES, [Limit(costs, 4 * 8 - 1)]).tolist() != [1, 1]


def test_nothing_within_the_budget():
    assert choose(np.ones((2, 3)), CHOICES, [Limit(np.full((2, 3), 10), 19)]) is None


def test_what_the_solver_prints_is_not_told(capfd):
    with _silent():
        os.write(1, b"transformNewIntegerFeasibleSolution tmpSolver.run();")
    os.write(1, b"told")
    assert capfd.readouterr().out == "told"
