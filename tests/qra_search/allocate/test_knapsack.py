"""The knapsack finds what brute force finds."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search.allocate import knapsack


def solve(cost, size, budget, **options):
    """The items (G,) of a problem whose groups have one rank."""
    code = knapsack.solve(cost[..., None], size[..., None], budget, **options)
    assert code is None or (code[1] == 0).all()
    return None if code is None else code[0]


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
    monkeypatch.setattr(knapsack, "MOST_SUMS", 20)
    assert solve(cost, size, 333).tolist() == fast.tolist()


def test_inputs_are_not_changed():
    rng = np.random.default_rng(0)
    cost, size = rng.random((6, 4)), rng.integers(1, 50, (6, 4))
    before = cost.copy(), size.copy()
    solve(cost, size, 120)
    assert np.array_equal(cost, before[0]) and np.array_equal(size, before[1])


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
