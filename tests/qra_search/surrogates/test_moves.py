"""Candidate plans fit the budget, and are as good as the knapsack makes them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search.allocate import knapsack
from qra_search.surrogates.moves import distinct, neighbours, solve_many


def problem(seed: int, groups: int = 12, items: int = 6, tables: int = 5):
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 1000, (groups, items)).cumsum(1)
    cost = rng.exponential(1.0, (tables, groups, items)) * np.exp(-np.arange(items))
    cost[:, rng.random((groups, items)) < 0.1] = np.inf
    cost[:, :, 0] = np.where(np.isfinite(cost[:, :, 0]), cost[:, :, 0], 3.0)
    budget = int(size[:, 0].sum() + rng.random() * (size[:, -1].sum() - size[:, 0].sum()))
    return cost, size, budget


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_many_tables_are_solved_as_well_as_one_by_one(seed):
    cost, size, budget = problem(seed)
    choices = solve_many(cost, size, budget)
    g = np.arange(len(size))
    for table, choice in zip(cost, choices, strict=True):
        exact = table[g, knapsack.solve(table, size, budget)].sum()
        got = table[g, choice].sum()
        assert size[g, choice].sum() <= budget
        largest = (np.where(np.isfinite(table), table, -np.inf).max(1) - table.min(1)).max()
        assert exact - 1e-9 <= got <= exact + largest  # Lagrange loses at most one group's span


def test_a_table_solved_alone_gives_the_same_choice():
    cost, size, budget = problem(3, tables=8)
    together = solve_many(cost, size, budget)
    for i in range(8):
        np.testing.assert_array_equal(solve_many(cost[i : i + 1], size, budget)[0], together[i])


def test_a_budget_for_everything_gives_the_cheapest_items():
    cost, size, _ = problem(1)
    np.testing.assert_array_equal(solve_many(cost, size, int(size.sum())), cost.argmin(2))


def test_a_budget_for_the_smallest_plan_gives_the_smallest_plan():
    cost, size, _ = problem(2)
    choices = solve_many(cost, size, int(size[:, 0].sum()))
    assert (choices == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_neighbours_fit_and_differ_in_one_or_two_groups(seed):
    cost, size, budget = problem(seed)
    plan = solve_many(cost[:1], size, budget)[0]
    near = neighbours(plan, cost[0], size, budget, 20)
    changed = (near != plan).sum(1)
    g = np.arange(len(size))
    assert set(changed.tolist()) <= {1, 2}
    assert (size[g, near].sum(1) <= budget).all()
    assert np.isfinite(cost[0][g, near]).all()


def test_swaps_pay_for_what_helps():
    """Nothing fits but an exchange: one group gives back what the other takes."""
    cost = np.array([[1.0, 0.0], [0.1, 0.0]])
    size = np.array([[1, 5], [1, 5]])
    near = neighbours(np.array([0, 1]), cost, size, 6, 10)
    assert [1, 0] in near.tolist()


def test_distinct_keeps_the_first_of_each_and_none_that_is_known():
    rows = np.array([[1, 2], [3, 4], [1, 2], [5, 6]])
    np.testing.assert_array_equal(distinct(rows, {rows[1].tobytes()}), [[1, 2], [5, 6]])
