"""The knapsack finds what brute force finds."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search.allocate import knapsack
from qra_search.allocate.knapsack import solve_many
from qra_search.strategies.qra import list_neighbours


def solve(cost, size, budget, **options):
    """The items (G,) of a problem whose groups have one rank."""
    found = knapsack.solve(cost[..., None], size[..., None], budget, **options)
    assert found is None or (found.code[1] == 0).all()
    return None if found is None else found.code[0]


def brute_force(cost, size, budget):
    best = None
    for choice in itertools.product(*(range(c.shape[0]) for c in cost)):
        rows = np.arange(len(cost))
        if size[rows, choice].sum() <= budget:
            value = cost[rows, choice].sum()
            if np.isfinite(value) and (best is None or value < best):
                best = value
    return best


@st.composite
def problems(draw):
    groups, items = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    cells = groups * items
    whole = draw(st.booleans())
    value = st.integers(-6, 6).map(float) if whole else st.floats(-10, 10, allow_nan=False)
    cost = np.array(draw(st.lists(value, min_size=cells, max_size=cells))).reshape(groups, items)
    size = np.array(draw(st.lists(st.integers(0, 30), min_size=cells, max_size=cells))).reshape(groups, items)
    banned = np.array(draw(st.lists(st.booleans(), min_size=cells, max_size=cells))).reshape(groups, items)
    cost = np.where(banned & (np.arange(items) > 0), np.inf, cost)
    return cost, size, draw(st.integers(0, 120))


def test_of_equal_costs_the_smallest_is_taken_where_all_fit():
    cost, size = np.array([[1.0, 0.0, 0.0]]), np.array([[1, 9, 5]])
    assert solve(cost, size, 100).tolist() == [2]


@given(problems())
@settings(max_examples=400, deadline=None)
def test_solve_is_as_good_as_brute_force(problem):
    cost, size, budget = problem
    expected, choice = brute_force(cost, size, budget), solve(cost, size, budget)
    if expected is None:
        assert choice is None
        return
    rows = np.arange(len(cost))
    assert size[rows, choice].sum() <= budget
    assert abs(cost[rows, choice].sum() - expected) <= 1e-9


@given(problems())
@settings(max_examples=200, deadline=None)
def test_the_fast_solution_fits_and_is_never_better_than_the_exact_one(problem):
    cost, size, budget = problem
    exact, fast = solve(cost, size, budget), solve(cost, size, budget, exact=False)
    assert (exact is None) == (fast is None)
    if exact is not None:
        rows = np.arange(len(cost))
        assert size[rows, fast].sum() <= budget
        assert cost[rows, fast].sum() >= cost[rows, exact].sum() - 1e-9


def test_thousands_of_like_groups_get_the_greedy_solution_if_partial_sums_are_too_many(monkeypatch):
    cost = np.tile([3.0, 2.0, 0.0], (40, 1))
    size = np.tile([0, 7, 25], (40, 1))
    exact, fast = solve(cost, size, 333), solve(cost, size, 333, exact=False)
    rows = np.arange(40)
    assert cost[rows, exact].sum() < cost[rows, fast].sum()
    monkeypatch.setattr(knapsack, "MAX_SUMS", 20)
    assert solve(cost, size, 333).tolist() == fast.tolist()
    assert not knapsack.solve(cost[..., None], size[..., None], 333).is_exact
    monkeypatch.undo()
    assert knapsack.solve(cost[..., None], size[..., None], 333).is_exact


def test_a_problem_of_sixty_groups_equals_the_integer_program():
    from scipy.optimize import Bounds, LinearConstraint, milp

    rng = np.random.default_rng(1)
    groups, items = 60, 16
    cost = rng.random((groups, items)).cumsum(1)[:, ::-1]
    size = rng.integers(1, 10_000, (groups, items)).cumsum(1)
    budget = int(size.min(1).sum() * 3)
    each = np.kron(np.eye(groups), np.ones(items))
    result = milp(
        cost.ravel(),
        constraints=[LinearConstraint(each, 1, 1), LinearConstraint(size.reshape(1, -1), 0, budget)],
        integrality=np.ones(groups * items),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    choice = solve(cost, size, budget)
    assert abs(cost[np.arange(groups), choice].sum() - result.fun) <= 1e-6


def priced_tables(seed: int, groups: int = 12, ranks: int = 2, tables: int = 5):
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
    cost, size, budget = priced_tables(seed)
    codes = solve_many(cost, size, budget)
    g = np.arange(len(size))
    for table, (b, r) in zip(cost, codes, strict=True):
        best = knapsack.solve(table, size, budget).code
        exact, got = table[g, best[0], best[1]].sum(), table[g, b, r].sum()
        assert size[g, b, r].sum() <= budget
        np.testing.assert_array_equal(solve_many(table[None], size, budget)[0], [b, r])
        largest = (np.where(np.isfinite(table), table, -np.inf).max((1, 2)) - table.min((1, 2))).max()
        assert exact - 1e-9 <= got <= exact + largest  # Lagrange loses at most one group's span


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_neighbours_fit_and_differ_in_one_or_two_groups(seed):
    cost, size, budget = priced_tables(seed)
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
