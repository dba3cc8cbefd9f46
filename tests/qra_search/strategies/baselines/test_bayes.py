"""Bayesian optimization proposes where its acquisition is largest, within the budgets."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from qra_search.space.steps import AdjacentSteps
from qra_search.strategies.baselines.bayes import BayesStrategy, fit_to_trials, score_improvement
from qra_search.testing.scenarios import ToyEvaluator, interpolate_budgets, make_logged_state, make_toy_space


def all_codes(space):
    steps = AdjacentSteps(space)
    choices = [np.flatnonzero(row) for row in steps.allowed.reshape(-1, steps.allowed.shape[-1])]
    return np.array(list(itertools.product(*choices))).reshape(-1, 2, len(space))


def small_state(**options):
    evaluator = ToyEvaluator(make_toy_space(3, bits=(2, 3, 4), ranks=(4, 8)))
    return make_logged_state(evaluator, budgets=interpolate_budgets(evaluator.space, 0.4, 0.7), **options)


def test_the_proposal_has_the_largest_acquisition_of_the_whole_space_and_records_what_was_expected():
    state = small_state()
    model = fit_to_trials(state)
    score, codes = score_improvement(state, model), all_codes(state.space)
    values = score(codes[[state.space.decode(code) not in state.seen for code in codes]])
    (proposal,) = BayesStrategy().propose(state, 1)
    chosen = state.space.encode_many([proposal.plan])
    assert score(chosen)[0] == pytest.approx(values.max(), abs=1e-6)
    mean, std = model.predict(chosen)
    assert proposal.predicted_loss == mean[0]


def test_the_acquisition_adds_up_expected_improvements_under_each_budget():
    state = small_state()
    model = fit_to_trials(state)
    mean, sizes = model.predict(model.codes)[0], state.memory.bytes(model.codes)
    codes = all_codes(state.space)[::17]
    expected, std = model.predict(codes)
    total = 0.0
    for budget in state.memory_budgets:
        best = mean[sizes <= budget].min()
        z = (best - expected) / std
        total += np.where(state.memory.bytes(codes) <= budget, std * (norm.pdf(z) + z * norm.cdf(z)), 0.0)
    np.testing.assert_allclose(np.exp(score_improvement(state, model)(codes)), total, rtol=1e-6, atol=1e-12)


def test_a_pending_plan_lowers_the_interest_in_its_neighbourhood():
    state = small_state(pending=1)
    without = replace(state, trials=state.trials[:-1])
    pending = state.pending[0].plan
    code = state.space.encode(pending)[None]
    assert fit_to_trials(state).predict(code)[1][0] < fit_to_trials(without).predict(code)[1][0]
    assert pending not in {p.plan for p in BayesStrategy().propose(state, 3)}


def test_its_estimate_of_a_noisy_plan_lies_nearer_to_the_truth_than_what_was_observed():
    state = make_logged_state(ToyEvaluator(noise=0.1), 80)
    estimates = BayesStrategy().estimate(state)
    quiet = ToyEvaluator(noise=0.0)
    truth = np.array([quiet.evaluate(p).loss for p in estimates.plans])
    observed = np.array([t.loss for t in state.full])
    assert np.sqrt(np.mean((estimates.mean - truth) ** 2)) < 0.8 * np.sqrt(np.mean((observed - truth) ** 2))
