"""The default strategy keeps the contract, and its parts do what they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fakes import AdditiveEvaluator, make_space

from qra_search import search
from qra_search.strategies import make_strategy
from qra_search.strategies.base import StudyState
from qra_search.strategies.qra import QRAStrategy, replicate_noise
from qra_search.testing import StrategyContract
from qra_search.trials import Proposal, Trial


class TestQRA(StrategyContract):
    @pytest.fixture
    def strategy(self):
        return make_strategy("qra")


class TestQRAWithEverything(StrategyContract):
    """Low fidelity and replicates are options: the contract holds with them too."""

    @pytest.fixture
    def strategy(self):
        return QRAStrategy(low=True, confirm=True)


class TwoFidelities(AdditiveEvaluator):
    """The low fidelity is the true loss moved up, or (`reverse`) ranks plans the other way round."""

    fidelities = (0.1, 1.0)

    def __init__(self, reverse: bool):
        super().__init__(make_space(groups=8))
        self.reversed = reverse

    def evaluate(self, plan, *, fidelity=1.0, seed=0):
        done = super().evaluate(plan, fidelity=fidelity, seed=seed)
        if fidelity == 1.0:
            return done
        return replace(done, loss=-done.loss if self.reversed else done.loss + 0.3)


@pytest.mark.parametrize("reverse", [False, True])
def test_the_low_fidelity_is_used_once_it_was_shown_to_rank_plans_and_dropped_where_it_does_not(reverse):
    evaluator = TwoFidelities(reverse)
    budget = evaluator.space.memory_bytes(evaluator.space.uniform(3, 8))
    result = search(evaluator, strategy=QRAStrategy(low=True), evaluations=14, memory_budget=budget)
    origins = [t.proposal.origin for t in result.trials]
    assert origins.count("pair") == 6 and origins.count("table") > 6
    assert ("low" in origins) is not reverse
    if not reverse:
        assert origins.index("low") > max(i for i, origin in enumerate(origins) if origin == "pair")


def replicated(noise, plans=4, seeds=4):
    """A study in which some plans were each evaluated with several seeds."""
    evaluator = AdditiveEvaluator(make_space(groups=3), noise=noise)
    chosen = evaluator.space.uniform_plans()[:plans]
    asked = [(plan, seed) for plan in chosen for seed in range(seeds)]
    trials = tuple(
        Trial(i, Proposal(plan, seed=seed), "done", evaluator.evaluate(plan, seed=seed))
        for i, (plan, seed) in enumerate(asked)
    )
    return StudyState(evaluator.space, trials, evaluator.prior())


def test_noise_is_estimated_from_replicates_alone_and_used_by_the_table():
    state = replicated(0.05, plans=6, seeds=6)
    deviations = []
    for plan in {t.plan for t in state.trials}:
        losses = np.array([t.loss for t in state.trials if t.plan == plan])
        deviations.append(np.var(losses, ddof=1))
    assert replicate_noise(state) == pytest.approx(np.sqrt(np.mean(deviations)))
    assert replicate_noise(replicated(0.05, plans=2, seeds=2)) == 0.0
    quiet, loud = (QRAStrategy(sweeps=0).estimate(replicated(noise)) for noise in (0.001, 0.2))
    assert loud.std.mean() > 3 * quiet.std.mean()
