"""Bayesian optimization proposes where its acquisition is largest, within the budgets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from qra_search import search
from qra_search.strategies.baselines.bayes import BayesStrategy, climb, linearized_row, swaps
from qra_search.strategies.baselines.belief import best_rows, known_rows
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.surrogates.hypervolume_improvement import Strips
from qra_search.testing.scenarios import ToyEvaluator, budgets_of, logged_state, scenario, toy_space


def all_rows(space):
    codec = PlanCodec(space)
    return np.array(list(itertools.product(*(np.flatnonzero(row) for row in codec.allowed))))


def small_state(**options):
    evaluator = ToyEvaluator(toy_space(3, bits=(2, 3, 4), ranks=(4, 8)))
    return logged_state(evaluator, budgets=budgets_of(evaluator.space, 0.4, 0.7), **options)


def test_the_proposal_has_the_largest_acquisition_of_the_whole_space():
    state, strategy = small_state(), BayesStrategy()
    belief = strategy._believe(state)
    codec = belief.codec
    sizes = codec.bytes(belief.rows)
    mean = belief.mean(belief.rows)
    strips = Strips.of_budgets(mean, sizes, state.memory_budgets, float(mean.max()))
    rows = all_rows(state.space)
    rows = rows[[codec.decode(r).key not in state.seen for r in rows]]
    values = strips.log_improvement(*belief.predict(rows), codec.bytes(rows))
    chosen = codec.encode([strategy.propose(state, 1)[0].plan])
    got = strips.log_improvement(*belief.predict(chosen), codec.bytes(chosen))[0]
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
    codec = PlanCodec(state.space)
    weights = np.random.default_rng(0).standard_normal(codec.variables)
    start, limit = codec.random(np.random.default_rng(1))[None], state.memory_limit
    ends, values = climb(codec, lambda rows: rows @ weights, start, set(), limit, np.random.default_rng(2))
    steps = codec.neighbours(ends[0])
    fitting = steps[codec.bytes(steps) <= state.memory_limit]
    assert values[0] >= (fitting @ weights).max()
    assert codec.bytes(ends[0]) <= state.memory_limit


def test_known_and_too_large_plans_are_no_candidates():
    state = scenario("a log that another strategy wrote")
    codec = PlanCodec(state.space)
    known = codec.encode([t.plan for t in state.trials])
    largest = codec.allowed.shape[1] - 1 - codec.allowed[:, ::-1].argmax(1)
    seen = known_rows(codec, state.seen)
    rows = np.concatenate([known, largest[None]])
    assert len(best_rows(codec, lambda rows: np.zeros(len(rows)), rows, seen, state.memory_limit)[0]) == 0


@pytest.mark.parametrize("seed", range(20))
def test_swaps_move_one_variable_up_and_another_down(seed):
    rng = np.random.default_rng(seed)
    codec = PlanCodec(toy_space(4, restricted=True))
    row = codec.random(rng)
    for swapped in swaps(codec, row, 20, rng):
        change = np.sign(swapped - row)
        assert (change == 1).sum() == 1 and (change == -1).sum() == 1
        assert codec.allowed[np.arange(codec.variables), swapped].all()
    alone = PlanCodec(toy_space(2, bits=(4,), ranks=(8,)))
    assert len(swaps(alone, alone.random(rng), 5, rng)) == 0


def test_the_linearized_row_is_optimal_where_the_model_is_additive():
    space = toy_space(3, bits=(2, 3, 4), ranks=(4, 8))
    codec = PlanCodec(space)
    table = np.random.default_rng(0).random(codec.allowed.shape)
    budget = budgets_of(space, 0.5)[0]

    def predict(rows):
        return table[np.arange(codec.variables), rows].sum(1)

    rows = all_rows(space)
    best = predict(rows[codec.bytes(rows) <= budget]).min()
    row = linearized_row(space, predict, rows[0], budget)
    assert codec.bytes(row) <= budget
    assert predict(row[None])[0] >= best - 1e-12
    assert predict(row[None])[0] <= best + 0.1
