"""The default strategy copes with odd logs and losses."""

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
from qra_search.testing.scenarios import ToyEvaluator, make_logged_state, make_toy_space


def test_many_budgets_are_searched_until_no_plan_that_fits_any_is_left():
    evaluator = AdditiveEvaluator(make_space(groups=2))
    sizes = sorted(evaluator.space.memory_bytes(plan) for plan in evaluator.space.uniform_plans())
    found = search(evaluator, strategy="qra", evaluations=40, memory_budget=[*sizes[:4], sizes[-1]])
    assert len(found.trials) == 40


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
