"""Candidate plans fit the budget, and are as good as the knapsack makes them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search.allocate import knapsack
from qra_search.allocate.knapsack import solve_many
from qra_search.allocate.solve import table_losses
from qra_search.strategies.qra import list_neighbours


def problem(seed: int, groups: int = 12, ranks: int = 2, tables: int = 5):
    """Costs (S, G, 3, R) and sizes (G, 3, R) that grow from choice to choice, and a budget."""
    rng = np.random.default_rng(seed)
    items = 3 * ranks
    size = rng.integers(1, 1000, (groups, items)).cumsum(1)
    cost = rng.exponential(1.0, (tables, groups, items)) * np.exp(-np.arange(items))
    cost[:, rng.random((groups, items)) < 0.1] = np.inf
    cost[:, :, 0] = np.where(np.isfinite(cost[:, :, 0]), cost[:, :, 0], 3.0)
    budget = int(size[:, 0].sum() + rng.random() * (size[:, -1].sum() - size[:, 0].sum()))
    return cost.reshape(tables, groups, 3, ranks), size.reshape(groups, 3, ranks), budget


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_many_tables_are_solved_as_each_alone_and_nearly_exactly(seed):
    cost, size, budget = problem(seed)
    codes = solve_many(cost, size, budget)
    g = np.arange(len(size))
    for table, (b, r) in zip(cost, codes, strict=True):
        best = knapsack.solve(table, size, budget)
        exact, got = table[g, best[0], best[1]].sum(), table[g, b, r].sum()
        assert size[g, b, r].sum() <= budget
        np.testing.assert_array_equal(solve_many(table[None], size, budget)[0], [b, r])
        largest = (np.where(np.isfinite(table), table, -np.inf).max((1, 2)) - table.min((1, 2))).max()
        assert exact - 1e-9 <= got <= exact + largest  # Lagrange loses at most one group's span


def test_budgets_for_everything_and_for_the_smallest_plan_are_met_by_the_cheapest_and_the_smallest():
    cost, size, _ = problem(1)
    cheapest = solve_many(cost, size, int(size.sum()))
    assert (table_losses(cost[0], cheapest[:1]) == cost[0].min((1, 2)).sum()).all()
    assert (solve_many(cost, size, int(size[:, 0, 0].sum())) == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_neighbours_fit_and_differ_in_one_or_two_groups(seed):
    cost, size, budget = problem(seed)
    code = solve_many(cost[:1], size, budget)[0]
    near = list_neighbours(code, cost[0], size, budget, 20)
    changed = (near != code).any(1).sum(1)
    g = np.arange(len(size))
    assert set(changed.tolist()) <= {1, 2}
    assert (size[g, near[:, 0], near[:, 1]].sum(1) <= budget).all()
    assert np.isfinite(cost[0][g, near[:, 0], near[:, 1]]).all()


def test_swaps_pay_for_what_helps():
    """Nothing fits but an exchange: one group gives back what the other takes."""
    cost = np.array([[[1.0, 0.0]], [[0.1, 0.0]]])
    size = np.array([[[1, 5]], [[1, 5]]])
    near = list_neighbours(np.array([[0, 0], [0, 1]]), cost, size, 6, 10)
    assert [[0, 0], [1, 0]] in near.tolist()
