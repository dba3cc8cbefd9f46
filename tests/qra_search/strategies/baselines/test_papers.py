"""Importances follow the sensitivities; warm starts and repairs follow the importances, and obey the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search import Sensitivities
from qra_search.space.memory import BudgetTooSmall
from qra_search.space.steps import Steps
from qra_search.strategies.baselines.autoqra import GAMMA, mutate_by_importance
from qra_search.strategies.baselines.papers import (
    EPSILON,
    coverage_encoding,
    jittered_start,
    measure_importance,
    repair_by_importance,
    warm_start,
)
from qra_search.testing.scenarios import budgets_at, toy_space

SPACE = toy_space(6)
STEPS = Steps(SPACE)
count_bytes = SPACE.memory.bytes
DAMAGE = np.array([0.1, 0.8, 0.2, 1.6, 0.4, 0.05])
SENSITIVITIES = Sensitivities(DAMAGE[:, None] * 0.25 ** np.arange(4), np.outer(DAMAGE[::-1], [0.1, 0.2, 0.3]))
IMPORTANCE = measure_importance(SPACE, SENSITIVITIES)


def test_importance_is_damage_at_the_fewest_bits_and_gain_at_the_largest_rank():
    assert IMPORTANCE[0] == pytest.approx(DAMAGE / 1.6)
    assert IMPORTANCE[1] == pytest.approx(DAMAGE[::-1] / 1.6)


def test_a_prior_of_zeros_makes_all_groups_alike():
    zero = measure_importance(SPACE, Sensitivities(np.zeros((6, 4)), np.zeros((6, 3))))
    assert (zero[0] == 1).all() and (zero[1] == 1).all()


@given(st.floats(0.0, 1.0))
@settings(deadline=None)
def test_a_warm_start_fits_the_budget_and_gives_more_to_what_matters_more(share):
    budget = budgets_at(SPACE, share)[0]
    row = warm_start(STEPS, IMPORTANCE, budget)
    assert count_bytes(row) <= budget
    bits, ranks = row
    assert (np.diff(bits[np.argsort(IMPORTANCE[0])]) >= 0).all()
    assert (np.diff(ranks[np.argsort(IMPORTANCE[1])]) >= 0).all()


def test_a_warm_start_spends_the_budget():
    """Not all 2 bits, as an importance that defaults to zero would give, and not beyond what fits."""
    sizes = [count_bytes(warm_start(STEPS, IMPORTANCE, b)) / b for b in budgets_at(SPACE, 0.3, 0.6, 1.0)]
    assert min(sizes) > 0.75
    assert warm_start(STEPS, IMPORTANCE, SPACE.memory.maximum).tolist() == [[3] * 6, [2] * 6]


def test_jitter_takes_single_steps():
    rng = np.random.default_rng(0)
    start = warm_start(STEPS, IMPORTANCE, SPACE.memory.maximum)
    jittered = [jittered_start(STEPS, IMPORTANCE, SPACE.memory.maximum, rng) for _ in range(20)]
    assert all(np.abs(row - start).sum() > 0 and np.abs(row - start).max() == 1 for row in jittered)
    assert np.array_equal(jittered_start(STEPS, IMPORTANCE, SPACE.memory.maximum, rng, 0.0), start)


def test_repair_takes_the_step_with_the_least_importance_a_byte_saved():
    row = STEPS.random(np.random.default_rng(1))
    repaired = repair_by_importance(STEPS, row, int(count_bytes(row)) - 1, IMPORTANCE)
    price = {}
    for v in range(row.size):
        lower = row.copy()
        lower.flat[v] = STEPS.down(row).flat[v]
        saved = int(count_bytes(row) - count_bytes(lower))
        if saved > 0:
            price[v] = (IMPORTANCE.flat[v] + EPSILON) / saved
    assert np.flatnonzero(repaired != row).tolist() == [min(price, key=price.get)]


@given(st.integers(0, 1000), st.floats(0.0, 1.0), st.integers(0, 11))
@settings(deadline=None)
def test_repair_fits_and_keeps_what_it_is_told_to_where_others_can_pay(seed, share, keep):
    budget = budgets_at(SPACE, share)[0]
    row = STEPS.random(np.random.default_rng(seed))
    repaired = repair_by_importance(STEPS, row, budget, IMPORTANCE, keep=keep)
    assert count_bytes(repaired) <= budget
    others_at_bottom = (np.delete(repaired, keep) == 0).all()
    assert repaired.flat[keep] == row.flat[keep] or others_at_bottom


def test_no_repair_reaches_a_budget_below_the_smallest_plan():
    with pytest.raises(BudgetTooSmall):
        repair_by_importance(STEPS, STEPS.random(np.random.default_rng(0)), 10, IMPORTANCE)


def test_coverage_is_the_importance_weighted_mean_place():
    encode = coverage_encoding(SPACE, IMPORTANCE)
    lowest, highest = np.zeros((1, 2, 6), int), np.array([[[3] * 6, [2] * 6]])
    assert encode(lowest)[0, -2:] == pytest.approx([0.0, 0.0])
    assert encode(highest)[0, -2:] == pytest.approx([1.0, 1.0])
    best = lowest.copy()
    best[0, 0, 3] = 3
    assert encode(best)[0, -2] == pytest.approx(DAMAGE[3] / DAMAGE.sum())


def mutations(coupled: float, budget: int, count: int = 400):
    rng = np.random.default_rng(2)
    row = np.ones((2, 6), int)
    changed = [mutate_by_importance(STEPS, row, budget, IMPORTANCE, rng, coupled) for _ in range(count)]
    return row, np.stack(changed)


def test_single_mutations_choose_variables_by_importance_to_the_gamma():
    row, mutated = mutations(0.0, SPACE.memory.maximum)
    assert (np.abs(mutated - row).sum((1, 2)) == 1).all()
    share = (mutated != row).mean(0)
    expected = IMPORTANCE**GAMMA / (IMPORTANCE**GAMMA).sum()
    assert share == pytest.approx(expected, abs=0.07)


def test_the_most_important_variables_go_up_and_the_least_important_down():
    row, mutated = mutations(0.0, SPACE.memory.maximum, 2000)
    step = (mutated - row)[:, 0, [3, 5]]
    assert (step[:, 0] == -1).sum() == 0 and (step[:, 0] == 1).sum() > 0
    assert (step[:, 1] == 1).sum() <= (step[:, 1] == -1).sum()


def test_coupled_mutations_raise_one_choice_and_pay_with_others():
    budget = int(count_bytes(np.ones((2, 6), int)))
    row, mutated = mutations(1.0, budget)
    change = mutated - row
    assert ((change > 0).sum((1, 2)) == 1).all()
    assert (count_bytes(mutated) <= budget).all()
    assert ((change < 0).sum((1, 2)) >= 1).all()
