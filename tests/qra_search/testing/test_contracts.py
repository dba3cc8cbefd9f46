"""The contract tests catch the strategies and evaluators that break the contract."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from qra_search import EvaluationFailed, Proposal, Sensitivities, Strategy
from qra_search.strategies.simple import RandomStrategy
from qra_search.study.study import StudyFailed
from qra_search.testing import EvaluatorContract, StrategyContract
from qra_search.testing.scenarios import SCENARIOS, ToyEvaluator

LOGGED = "a log that another strategy wrote"


class TestToyEvaluator(EvaluatorContract):
    @pytest.fixture(params=[(1.0,), (0.25, 1.0)])
    def evaluator(self, request) -> ToyEvaluator:
        return ToyEvaluator(fidelities=request.param)


class Lawful(RandomStrategy):
    def changed(self, proposals, state):
        return proposals

    def propose(self, state, n):
        return self.changed(super().propose(state, n), state)


class Repeating(Lawful):
    def changed(self, proposals, state):
        return [t.proposal for t in state.trials][-1:] or proposals


class RetryingFailures(Lawful):
    def changed(self, proposals, state):
        failed = [t for t in state.trials if t.status == "failed"]
        return [Proposal(failed[0].plan, seed=1000 + len(state.trials))] if failed else proposals


class OverTheBudget(Lawful):
    def changed(self, proposals, state):
        largest = state.space.uniform(state.space.bits[-1], state.space.ranks[-1])
        return [Proposal(largest, seed=500)] if proposals else []


class Greedy(Lawful):
    def propose(self, state, n):
        return super().propose(state, n + 1)


class GloballyRandom(Lawful):
    def changed(self, proposals, state):
        return [dataclasses.replace(p, seed=int(np.random.randint(1 << 30))) for p in proposals]


class Remembering(Lawful):
    calls = 0

    def changed(self, proposals, state):
        self.calls += 1
        return [dataclasses.replace(p, predicted_loss=float(self.calls)) for p in proposals]


class Endless(Lawful):
    def changed(self, proposals, state):
        return proposals or [Proposal(t.plan, seed=len(state.trials)) for t in state.trials[:1]]


def every_scenario(strategy: Strategy) -> None:
    for name in SCENARIOS:
        StrategyContract().test_every_proposal_is_new_and_within_the_budget(strategy, name)


def same_state(strategy: Strategy) -> None:
    StrategyContract().test_the_same_state_gives_the_same_proposals(strategy, LOGGED)


@pytest.mark.parametrize("strategy", [Repeating(), RetryingFailures(), OverTheBudget(), Greedy()])
def test_unlawful_proposals_are_caught(strategy):
    with pytest.raises((AssertionError, StudyFailed)):
        every_scenario(strategy)


@pytest.mark.parametrize("strategy", [GloballyRandom(), Remembering()])
def test_hidden_state_is_caught(strategy):
    with pytest.raises(AssertionError):
        same_state(strategy)


def test_a_study_that_never_ends_is_caught():
    with pytest.raises(AssertionError):
        StrategyContract().test_an_exhausted_space_ends_the_study(Endless())


def test_a_lawful_strategy_passes():
    every_scenario(Lawful())
    same_state(Lawful())


def test_an_evaluator_that_breaks_the_contract_is_caught():
    class Wrong(ToyEvaluator):
        """Ignores the seed below full fidelity, miscounts bytes, and describes itself anew."""

        calls = 0

        def evaluate(self, plan, *, fidelity=1.0, seed=0):
            self.calls += 1
            noise = 0.0 if fidelity == 1.0 else np.random.random()
            found = super().evaluate(plan, fidelity=fidelity, seed=seed)
            size = found.memory_bytes + (seed == 0)
            return dataclasses.replace(found, loss=found.loss + noise, memory_bytes=size)

        def sensitivities(self):
            return Sensitivities(np.zeros((2, 2)), np.zeros((2, 2)))

        def describe(self):
            return {**super().describe(), "calls": self.calls}

    contract, evaluator = EvaluatorContract(), Wrong(fidelities=(0.25, 1.0))
    plans = evaluator.space.uniform_plans()[:1]
    with pytest.raises(AssertionError, match="another loss at fidelity 0.25"):
        contract.test_it_accepts_its_fidelities_and_the_same_seed_gives_the_same_loss(evaluator, plans)
    with pytest.raises(EvaluationFailed, match="bytes"):
        contract.test_loss_is_finite_and_bytes_are_those_of_the_space(evaluator, plans)
    with pytest.raises(ValueError, match="sensitivities have shapes"):
        contract.test_the_sensitivities_have_the_shape_of_the_space_and_are_measured_once(evaluator)
    with pytest.raises(AssertionError):
        contract.test_it_describes_itself_in_plain_data_that_stays(evaluator, plans)


def test_estimates_by_chance_are_caught():
    class Guessing(Lawful):
        def estimate(self, state):
            known = super().estimate(state)
            return dataclasses.replace(known, mean=known.mean + np.random.random(len(known.mean)))

    with pytest.raises(AssertionError, match="other estimates"):
        StrategyContract().test_it_estimates_exactly_the_plans_evaluated_in_full(Guessing())
