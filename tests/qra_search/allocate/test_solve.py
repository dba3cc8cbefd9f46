"""The allocation: the exact plan against every uniform one that fits, with intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from qra_search.allocate import knapsack
from qra_search.allocate.solve import MIN_DEVIATION, RELATIVE_DEVIATION, Z_90, solve
from qra_search.schemas import Plan, Sensitivities
from qra_search.space.memory import BudgetTooSmall
from qra_search.space.space import SearchSpace
from qra_search.testing.scenarios import make_toy_space


@pytest.fixture
def space() -> SearchSpace:
    return make_toy_space(3, bits=(2, 3, 4), ranks=(4, 8))


@pytest.fixture
def sensitivities(space: SearchSpace) -> Sensitivities:
    damage = np.array([[0.9, 0.3, 0.1], [0.2, 0.1, 0.05], [0.4, 0.02, 0.01]])
    return Sensitivities(damage, np.full((3, 2), 0.01) * [[1.0, 1.5]], repair=0.0)


def loss(space: SearchSpace, sensitivities: Sensitivities, plan: Plan) -> float:
    b, r = space.encode(plan)
    return sum(
        float(sensitivities.bits_damage[g, b[g]] - sensitivities.rank_gain[g, r[g]])
        for g in range(len(space))
    )


def test_the_plan_is_the_best_of_all_that_fit(space: SearchSpace, sensitivities: Sensitivities) -> None:
    every = [
        Plan(bits, ranks)
        for bits in itertools.product(space.bits, repeat=3)
        for ranks in itertools.product(space.ranks, repeat=3)
    ]
    for budget in sorted({space.memory_bytes(plan) for plan in every})[::3]:
        found = solve(space, sensitivities, budget)
        assert found.memory_bytes <= budget
        best = min(loss(space, sensitivities, plan) for plan in every if space.memory_bytes(plan) <= budget)
        assert loss(space, sensitivities, found.plan) == pytest.approx(best)


def test_gains_are_differences_of_the_sums_and_their_intervals_are_as_wide_as_said(
    space: SearchSpace, sensitivities: Sensitivities
) -> None:
    budget = space.memory_bytes(Plan((3, 3, 3), (8, 8, 8)))
    found = solve(space, sensitivities, budget)
    assert {u.plan for u in found.uniform} == {
        p for p in space.uniform_plans() if space.memory_bytes(p) <= budget
    }
    assert found.predicted_loss == pytest.approx(loss(space, sensitivities, found.plan))
    for other in found.uniform:
        gain = loss(space, sensitivities, other.plan) - loss(space, sensitivities, found.plan)
        assert other.gain == pytest.approx(gain)
        half = Z_90 * math.hypot(RELATIVE_DEVIATION * gain, MIN_DEVIATION)
        assert other.interval == pytest.approx((gain - half, gain + half))
        assert other.is_certain == (gain > half)
    assert found.best_uniform is not None and found.best_uniform.gain == min(u.gain for u in found.uniform)


def test_a_uniform_optimum_is_the_best_uniform_plan_and_a_budget_that_nothing_fits_is_refused(
    space: SearchSpace, sensitivities: Sensitivities
) -> None:
    whole = solve(space, sensitivities, space.memory.maximum)
    assert whole.best_uniform is not None
    assert whole.best_uniform.plan == whole.plan and whole.best_uniform.interval == (0.0, 0.0)
    with pytest.raises(BudgetTooSmall):
        solve(space, sensitivities, space.memory.minimum - 1)


def test_an_allocation_says_if_only_the_greedy_solution_was_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Forty like groups, of which a few can be widened: more partial sums than are kept."""
    space = make_toy_space(40, bits=(2, 3, 4), ranks=(4, 8))
    alike = Sensitivities(np.tile([[3.0, 2.0, 0.0]], (40, 1)), np.zeros((40, 2)), repair=0.0)
    budget = (2 * space.memory.minimum + space.memory.maximum) // 3
    assert solve(space, alike, budget).is_exact
    monkeypatch.setattr(knapsack, "MAX_SUMS", 20)
    found = solve(space, alike, budget)
    assert not found.is_exact and found.to_dict()["is_exact"] is False
