"""Bayesian optimization proposes where its acquisition is largest, within the budgets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from qra_search import search
from qra_search.strategies.baselines.bayes import BayesStrategy, swaps
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.surrogates.hypervolume_improvement import Strips
from qra_search.testing.scenarios import ToyEvaluator, budgets_of, logged_state, toy_space


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
    bayes, random = (search(evaluator, s, evaluations=18, memory_budget=budget, seed=1) for s in ("bayes", "random"))
    assert bayes.best().loss < random.best().loss


@pytest.mark.parametrize("seed", range(3))
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
