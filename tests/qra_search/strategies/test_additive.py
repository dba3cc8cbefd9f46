"""The additive strategy solves the knapsack exactly, over the sensitivities, then over what trials made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qra_search import Evaluation, Sensitivities
from qra_search.allocate.solve import (
    build_additive_table,
    compute_table_losses,
    make_flat_sensitivities,
    solve_table,
)
from qra_search.log.state import StudyState
from qra_search.strategies.additive import AdditiveStrategy
from qra_search.surrogates.posterior import compute_posterior_table
from qra_search.testing.scenarios import (
    ToyEvaluator,
    interpolate_budgets,
    make_logged_state,
    make_toy_space,
    scenario,
)


class TableEvaluator(ToyEvaluator):
    """A loss that is exactly a table, given with sensitivities whose groups are scaled wrongly."""

    def __init__(self, wrong: float):
        super().__init__(make_toy_space(8))
        rng = np.random.default_rng(0)
        damage = rng.lognormal(0, 0.5, (8, 1)) * 0.25 ** np.arange(4)
        self.truth = Sensitivities(damage, np.tile([0.01, 0.02, 0.03], (8, 1)))
        self.table = build_additive_table(self.space, self.truth)
        self.given = replace(self.truth, bits_damage=damage * np.exp(wrong * rng.standard_normal((8, 1))))

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        loss = 1.0 + compute_table_losses(self.table, self.space.encode_many([plan]))[0]
        return Evaluation(float(loss), self.space.memory_bytes(plan), fidelity=fidelity, seed=seed)

    def sensitivities(self):
        return self.given


def sum_losses(evaluator, table):
    budgets = interpolate_budgets(evaluator.space, 0.2, 0.4)
    return sum(evaluator.evaluate(solve_table(evaluator.space, table, budget)).loss for budget in budgets)


def test_named_budgets_come_first_and_the_sweep_goes_on_below_them():
    evaluator = ToyEvaluator(make_toy_space(8))
    budgets = interpolate_budgets(evaluator.space, 0.3, 0.6)
    state = StudyState(evaluator.space, sensitivities=evaluator.sensitivities(), memory_budgets=budgets)
    proposals = AdditiveStrategy().propose(state, 6)
    table = build_additive_table(evaluator.space, evaluator.sensitivities())
    assert [p.plan for p in proposals[:2]] == [solve_table(evaluator.space, table, b) for b in budgets]
    assert len({p.plan for p in proposals}) == 6
    assert all(evaluator.space.memory_bytes(p.plan) <= budgets[1] for p in proposals)


def test_trials_correct_a_prior_with_wrong_scales():
    evaluator = TableEvaluator(wrong=0.6)
    learnt = compute_posterior_table(make_logged_state(evaluator, 40))
    given = build_additive_table(evaluator.space, evaluator.given)
    best = sum_losses(evaluator, evaluator.table)
    assert sum_losses(evaluator, learnt) - best < 0.25 * (sum_losses(evaluator, given) - best)


def test_a_right_prior_is_left_as_it_is():
    evaluator = TableEvaluator(wrong=0.0)
    learnt = compute_posterior_table(make_logged_state(evaluator, 30))
    ratio = (learnt + evaluator.truth.rank_gain[:, None, :])[:, 0, 0] / evaluator.table[:, 0, 0]
    assert ratio == pytest.approx(np.ones(8), abs=0.1)


def test_without_a_prior_larger_groups_are_taken_to_matter_more():
    space = make_toy_space(2, "module")
    sensitivities = make_flat_sensitivities(space)
    weights = np.array([g.weights for g in space.groups])
    assert sensitivities.bits_damage[:, 0] == pytest.approx(weights / weights.sum())
    assert sensitivities.bits_damage[0, 1] == pytest.approx(sensitivities.bits_damage[0, 0] / 4)


def test_a_prior_of_zeros_says_nothing_and_the_flat_one_stands_in():
    space = make_toy_space(3)
    zeros = Sensitivities(np.zeros((3, 4)), np.zeros((3, 3)))
    assert np.array_equal(build_additive_table(space, zeros), build_additive_table(space, None))
    assert len(AdditiveStrategy().propose(scenario("sensitivities of zeros"), 3)) == 3
