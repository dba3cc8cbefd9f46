"""What sensitivities foretell: the exact plan against every uniform one that fits, with intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import Plan, SearchSpace
from qra_search.study.forecast import FACTOR, LEAST, WITHIN, solve_plan
from qra_search.testing.scenarios import toy_space


@pytest.fixture
def space() -> SearchSpace:
    return toy_space(3, bits=(2, 3, 4), ranks=(4, 8))


@pytest.fixture
def sensitivities(space: SearchSpace) -> Sensitivities:
    damage = np.array([[0.9, 0.3, 0.1], [0.2, 0.1, 0.05], [0.4, 0.02, 0.01]])
    return Sensitivities(damage, np.full((3, 2), 0.01) * [[1.0, 1.5]], repair=0.0)


def loss(space: SearchSpace, sensitivities: Sensitivities, plan: Plan) -> float:
    b, r = space.encode(plan)
    return sum(float(sensitivities.bits_damage[g, b[g]] - sensitivities.rank_gain[g, r[g]]) for g in range(len(space)))


def test_the_plan_is_the_best_of_all_that_fit(space: SearchSpace, sensitivities: Sensitivities) -> None:
    every = [
        Plan(bits, ranks)
        for bits in itertools.product(space.bits, repeat=3)
        for ranks in itertools.product(space.ranks, repeat=3)
    ]
    for budget in sorted({space.memory_bytes(plan) for plan in every})[::3]:
        found = solve_plan(space, sensitivities, budget)
        assert found is not None and found.memory_bytes <= budget
        best = min(loss(space, sensitivities, plan) for plan in every if space.memory_bytes(plan) <= budget)
        assert loss(space, sensitivities, found.plan) == pytest.approx(best)


def test_gains_are_differences_of_the_sums_and_their_intervals_are_as_wide_as_said(
    space: SearchSpace, sensitivities: Sensitivities
) -> None:
    budget = space.memory_bytes(Plan((3, 3, 3), (8, 8, 8)))
    found = solve_plan(space, sensitivities, budget)
    assert found is not None
    assert {u.plan.key for u in found.uniform} == {
        p.key for p in space.uniform_plans() if space.memory_bytes(p) <= budget
    }
    for other in found.uniform:
        gain = loss(space, sensitivities, other.plan) - loss(space, sensitivities, found.plan)
        assert other.gain == pytest.approx(gain)
        half = WITHIN * math.hypot(FACTOR * gain, LEAST)
        assert other.interval == pytest.approx((gain - half, gain + half))
        assert other.certain == (gain > half)
    assert found.rival is not None and found.rival.gain == min(u.gain for u in found.uniform)


def test_a_uniform_optimum_is_its_own_rival_and_a_budget_that_nothing_fits_foretells_nothing(
    space: SearchSpace, sensitivities: Sensitivities
) -> None:
    whole = solve_plan(space, sensitivities, space.memory.maximum)
    assert whole is not None and whole.rival is not None
    assert whole.rival.plan == whole.plan and whole.rival.interval == (0.0, 0.0)
    assert solve_plan(space, sensitivities, space.memory.minimum - 1) is None
