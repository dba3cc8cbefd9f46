"""The default strategy keeps the contract with several seeds too, and its parts do what they say."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from fakes import AdditiveEvaluator, make_space

from qra_search import Evaluation, Evaluator, Group, Linear, SearchSpace, Sensitivities, search
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.strategies.qra import QRAStrategy
from qra_search.study.study import Study
from qra_search.surrogates.posterior import fit_table, observe, replicate_noise
from qra_search.surrogates.table import Widths
from qra_search.testing import StrategyContract


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


def test_noise_is_estimated_from_replicates_alone_and_used_by_the_table():
    state = replicated(0.05, plans=6, seeds=6)
    deviations = []
    for plan in {t.plan for t in state.trials}:
        losses = np.array([t.loss for t in state.trials if t.plan == plan])
        deviations.append(np.var(losses, ddof=1))
    assert replicate_noise(state) == pytest.approx(np.sqrt(np.mean(deviations)))
    assert replicate_noise(replicated(0.05, plans=2, seeds=2)) == 0.0
    states = [replicated(noise) for noise in (0.001, 0.2)]
    quiet, loud = (fit_table(s, observe(s)[1], Widths(shift=0.0)).at_rows()[1].mean() for s in states)
    assert loud > 3 * quiet


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


def test_there_is_no_proposal_without_a_seed():
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        QRAStrategy(seeds=0)


def test_a_log_with_a_seed_for_every_trial_is_fitted_all_the_same():
    space = make_space(groups=3)
    evaluator = AdditiveEvaluator(space)
    rng = np.random.default_rng(0)
    plans = [space.decode(np.stack([rng.integers(0, 4, 3), rng.integers(0, 3, 3)])) for _ in range(60)]
    trials = tuple(
        Trial(i, Proposal(plan, seed=i), "done", evaluator.evaluate(plan, seed=i)) for i, plan in enumerate(plans)
    )
    found = QRAStrategy().estimate(StudyState(space, trials, evaluator.sensitivities()))
    losses = [t.loss for t in trials]
    assert np.corrcoef(found.mean, losses)[0, 1] > 0.99 and np.isfinite(found.std).all()


class MostlyRight(Evaluator):
    """Its loss is the share of eight rows that are wrong: none by most plans."""

    def __init__(self) -> None:
        linears = [Linear(name=f"l{i}", out_features=64, in_features=64) for i in range(6)]
        groups = [Group(name=linear.name, linears=[linear]) for linear in linears]
        self.space = SearchSpace(groups=groups, bits=(2, 3, 4), ranks=(4, 8), fixed_bytes=0)

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        wrong = int(hashlib.md5(plan.key.encode()).hexdigest(), 16) * 7 % 100 >= 70
        return Evaluation(wrong / 8, self.space.memory_bytes(plan), fidelity=fidelity, seed=seed)

    def sensitivities(self):
        return Sensitivities(np.tile(np.linspace(0.3, 0.01, 3), (6, 1)), np.tile(np.linspace(0, 0.02, 2), (6, 1)))

    def describe(self):
        return {"evaluator": "mostly right"}


def test_a_search_in_which_most_plans_are_without_fault_goes_on():
    result = search(MostlyRight(), evaluations=12, memory_budget="uniform3r8", seed=0)
    assert len(result.trials) == 12 and result.best().loss < 0.01
