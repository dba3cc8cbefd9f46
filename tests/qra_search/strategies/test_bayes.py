"""Bayesian optimization proposes where its acquisition is largest, within the budgets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from qra_search.workflow.search_function import search

from qra_search.strategies.bayes import BayesStrategy
from qra_search.strategies.evolution.edits import PlanCodec
from qra_search.strategies.gp.local_search import LocalSearch, linearized_row
from qra_search.surrogates.hypervolume_improvement import Strips
from qra_search.testing.scenarios import ToyEvaluator, budgets_of, logged_state, scenario, toy_space


def all_rows(space):
    levels = PlanCodec(space)
    return np.array(list(itertools.product(*(np.flatnonzero(row) for row in levels.allowed))))


def small_state(**options):
    evaluator = ToyEvaluator(toy_space(3, bits=(2, 3, 4), ranks=(4, 8)))
    return logged_state(evaluator, budgets=budgets_of(evaluator.space, 0.4, 0.7), **options)


def test_the_proposal_has_the_largest_acquisition_of_the_whole_space():
    state, strategy = small_state(), BayesStrategy()
    belief = strategy._believe(state)
    levels = belief.levels
    sizes = levels.bytes(belief.rows)
    mean = belief.mean(belief.rows)
    strips = Strips.of_budgets(mean, sizes, state.memory_budgets, float(mean.max()))
    rows = all_rows(state.space)
    rows = rows[[levels.decode(r).key not in state.seen for r in rows]]
    values = strips.log_improvement(*belief.predict(rows), levels.bytes(rows))
    chosen = levels.encode([strategy.propose(state, 1)[0].plan])
    got = strips.log_improvement(*belief.predict(chosen), levels.bytes(chosen))[0]
    assert got == pytest.approx(values.max(), abs=1e-9)


def test_a_pending_plan_lowers_the_interest_in_its_neighbourhood():
    state = small_state(pending=1)
    without = replace(state, trials=state.trials[:-1])
    pending = state.pending[0].plan
    row = PlanCodec(state.space).encode([pending])
    strategy = BayesStrategy()
    assert strategy._believe(state).predict(row)[1][0] < strategy._believe(without).predict(row)[1][0]
    assert pending.key not in {p.plan.key for p in strategy.propose(state, 3)}


def test_what_it_expected_is_recorded():
    state, strategy = small_state(), BayesStrategy()
    proposal = strategy.propose(state, 1)[0]
    mean, std = strategy._believe(state).predict(PlanCodec(state.space).encode([proposal.plan]))
    assert (proposal.predicted_loss, proposal.predicted_std) == (mean[0], std[0])


def test_its_estimate_of_a_noisy_plan_lies_nearer_to_the_truth_than_what_was_observed():
    evaluator = ToyEvaluator(noise=0.1)
    state = logged_state(evaluator, 80)
    estimates = BayesStrategy().estimate(state)
    quiet = ToyEvaluator(noise=0.0)
    truth = np.array([quiet.evaluate(p).loss for p in estimates.plans])
    observed = np.array([t.loss for t in state.full])
    assert np.sqrt(np.mean((estimates.mean - truth) ** 2)) < 0.8 * np.sqrt(np.mean((observed - truth) ** 2))


def test_it_beats_random_search_on_a_landscape_with_interaction():
    evaluator = ToyEvaluator(toy_space(8))
    budget = budgets_of(evaluator.space, 0.35)
    bayes, random = (search(evaluator, s, evaluations=30, memory_budget=budget, seed=1) for s in ("bayes", "random"))
    assert bayes.best().loss < random.best().loss


def test_climbing_ends_where_no_step_helps():
    state = scenario("groups with fewer choices")
    levels = PlanCodec(state.space)
    weights = np.random.default_rng(0).standard_normal(levels.variables)
    candidates = LocalSearch(levels, lambda rows: rows @ weights, (), state.memory_limit)
    ends, values = candidates.climb(levels.random(np.random.default_rng(1))[None], np.random.default_rng(2))
    steps = levels.neighbours(ends[0])
    fitting = steps[levels.bytes(steps) <= state.memory_limit]
    assert values[0] >= (fitting @ weights).max()
    assert levels.bytes(ends[0]) <= state.memory_limit


def test_known_and_too_large_plans_are_no_candidates():
    state = scenario("a log that another strategy wrote")
    levels = PlanCodec(state.space)
    known = levels.encode([t.plan for t in state.trials])
    candidates = LocalSearch(levels, lambda rows: np.zeros(len(rows)), state.seen, state.memory_limit)
    assert len(candidates.best(known)[0]) == 0
    largest = levels.allowed.shape[1] - 1 - levels.allowed[:, ::-1].argmax(1)
    assert len(candidates.best(largest[None])[0]) == 0


def test_the_linearized_row_is_optimal_where_the_model_is_additive():
    space = toy_space(3, bits=(2, 3, 4), ranks=(4, 8))
    levels = PlanCodec(space)
    table = np.random.default_rng(0).random(levels.allowed.shape)
    budget = budgets_of(space, 0.5)[0]

    def predict(rows):
        return table[np.arange(levels.variables), rows].sum(1)

    rows = all_rows(space)
    best = predict(rows[levels.bytes(rows) <= budget]).min()
    row = linearized_row(space, predict, rows[0], budget)
    assert levels.bytes(row) <= budget
    assert predict(row[None])[0] >= best - 1e-12
    assert predict(row[None])[0] <= best + 0.1
