"""The default strategy keeps the contract with several seeds too, and its parts do what they say."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from fakes import AdditiveEvaluator, make_space

from qra_search import search
from qra_search.log.state import StudyState
from qra_search.schemas import Proposal, Trial
from qra_search.strategies.qra import QRAStrategy
from qra_search.study.study import Study
from qra_search.surrogates.posterior import average_observations, estimate_replicate_noise, fit_table
from qra_search.testing import StrategyContract
from qra_search.testing.scenarios import ToyEvaluator, make_logged_state, make_toy_space


class TestQRAWithSeedsInTurn(StrategyContract):
    @pytest.fixture
    def strategy(self):
        return QRAStrategy(seeds=3)


def replicated(noise, plans=4, seeds=4):
    """A study in which some plans were each evaluated with several seeds."""
    evaluator = AdditiveEvaluator(make_space(groups=3), noise=noise)
    chosen = evaluator.space.uniform_plans()[:plans]
    asked = [(plan, seed) for plan in chosen for seed in range(seeds)]
    trials = tuple(
        Trial(i, Proposal(plan, seed=seed), "done", evaluator.evaluate(plan, seed=seed))
        for i, (plan, seed) in enumerate(asked)
    )
    return StudyState(evaluator.space, trials, evaluator.sensitivities())


def test_many_budgets_are_searched_until_no_plan_that_fits_any_is_left():
    evaluator = AdditiveEvaluator(make_space(groups=2))
    sizes = sorted(evaluator.space.memory_bytes(plan) for plan in evaluator.space.uniform_plans())
    found = search(evaluator, strategy="qra", evaluations=40, memory_budget=[*sizes[:4], sizes[-1]])
    assert len(found.trials) == 40


def test_noise_is_estimated_from_replicates_alone_and_used_by_the_table():
    state = replicated(0.05, plans=6, seeds=6)
    deviations = []
    for plan in {t.plan for t in state.trials}:
        losses = np.array([t.loss for t in state.trials if t.plan == plan])
        deviations.append(np.var(losses, ddof=1))
    assert estimate_replicate_noise(state) == pytest.approx(np.sqrt(np.mean(deviations)))
    assert estimate_replicate_noise(replicated(0.05, plans=2, seeds=2)) == 0.0
    states = [replicated(noise) for noise in (0.001, 0.2)]
    quiet, loud = (fit_table(s, average_observations(s)[1]) for s in states)
    assert loud.widths.noise * loud.spread > 3 * quiet.widths.noise * quiet.spread


def test_what_was_seen_at_a_lower_fidelity_is_not_taken_for_a_full_evaluation():
    space = make_space(groups=3)
    plans = space.uniform_plans()
    evaluator = AdditiveEvaluator(space)
    full = tuple(Trial(i, Proposal(p), "done", evaluator.evaluate(p)) for i, p in enumerate(plans[:4]))
    wrong = replace(evaluator.evaluate(plans[5]), loss=-9.0, fidelity=0.25)
    low = Trial(4, Proposal(plans[5], fidelity=0.25), "done", wrong)
    alone, both = (StudyState(space, trials, evaluator.sensitivities()) for trials in (full, (*full, low)))
    expected, found = (QRAStrategy().estimate(state) for state in (alone, both))
    assert found.plans == expected.plans and found.mean == pytest.approx(expected.mean)


class Hard(AdditiveEvaluator):
    """Every other seed adds to all losses alike."""

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        found = super().evaluate(plan, fidelity=fidelity, seed=seed)
        return replace(found, loss=found.loss + 0.5 * (seed % 2))


def test_seeds_are_taken_in_turn_and_what_each_adds_is_told_apart_from_the_plan():
    study = Study(Hard(make_space(groups=6)), strategy=QRAStrategy(seeds=2), evaluations=30)
    result = study.run()
    asked = [t for t in result.trials if t.proposal.origin == "table"]
    assert [t.seed for t in asked] == [t.id % 2 for t in asked] and len(asked) > 10
    truth = AdditiveEvaluator(make_space(groups=6))
    losses = np.array([truth.evaluate(c.plan).loss for c in result.candidates])
    np.testing.assert_allclose([c.loss for c in result.candidates], losses, atol=0.02)
    late = asked[len(asked) // 2 :]
    np.testing.assert_allclose([t.proposal.predicted_loss for t in late], [t.loss for t in late], atol=0.05)


def test_a_log_with_a_seed_for_every_trial_is_fitted_all_the_same():
    state = make_logged_state(ToyEvaluator(make_toy_space(3)), 60)
    trials = tuple(replace(t, proposal=replace(t.proposal, seed=t.id)) for t in state.trials)
    found = QRAStrategy().estimate(replace(state, trials=trials))
    assert np.corrcoef(found.mean, [t.loss for t in trials])[0, 1] > 0.99 and np.isfinite(found.std).all()


class MostlyRight(AdditiveEvaluator):
    """Its loss is the share of eight rows that are wrong: none by most plans."""

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        wrong = int(hashlib.md5(plan.key.encode()).hexdigest(), 16) * 7 % 100 >= 70
        return replace(super().evaluate(plan, fidelity=fidelity, seed=seed), loss=wrong / 8)


def test_a_search_in_which_most_plans_are_without_fault_goes_on():
    result = search(MostlyRight(), evaluations=12, memory_budget="uniform3r8", seed=0)
    assert len(result.trials) == 12 and result.best().loss < 0.01
