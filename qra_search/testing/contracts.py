"""Contract tests for strategies and evaluators: subclass a class, give it one fixture, and pytest runs the rest.

    class TestMine(StrategyContract):
        @pytest.fixture
        def strategy(self):
            return MyStrategy()

Every test says in its name what must hold. The small studies that they run on come from
`qra_search.testing.scenarios`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qra_search.errors import EvaluationFailed
from qra_search.evaluator import Evaluator, check_evaluation
from qra_search.log.state import StudyState
from qra_search.schemas import Plan
from qra_search.space.serialization import check_sensitivities
from qra_search.strategies import Strategy
from qra_search.strategies.simple import RandomStrategy
from qra_search.study.study import Study, check_proposals
from qra_search.testing.scenarios import (
    EXHAUSTED_SCENARIO,
    SCENARIOS,
    ToyEvaluator,
    disturb_global_randomness,
    interpolate_budgets,
    make_toy_space,
    scenario,
)

LOGGED = "a log that another strategy wrote"
PROPOSALS_AT_ONCE = 3
"""Proposals asked for at once in every scenario."""
PROCESS_TIMEOUT = 300


class StrategyContract:
    """What every strategy must do; subclass it and define the fixture `strategy`.

    Attributes:
        finite: True for a strategy that has only a few plans to offer (such as all uniform ones), and so may
            come back with nothing.
    """

    finite = False

    @pytest.fixture
    def strategy(self) -> Strategy:
        raise NotImplementedError("define a fixture `strategy` in your test class")

    @pytest.mark.parametrize("name", list(SCENARIOS))
    def test_every_proposal_is_new_and_within_the_budget(self, strategy: Strategy, name: str) -> None:
        state = scenario(name)
        before = repr(state)
        proposals = strategy.propose(state, PROPOSALS_AT_ONCE)
        assert len(proposals) <= PROPOSALS_AT_ONCE, (
            f"propose(state, {PROPOSALS_AT_ONCE}) returned {len(proposals)} proposals"
        )
        assert proposals or self.finite or name == EXHAUSTED_SCENARIO, (
            "propose returned [] while plans are left: that ends a study; set `finite = True` if the strategy has "
            "only a few plans to offer"
        )
        assert strategy.propose(state, 0) == [], "propose(state, 0) must return []"
        check_proposals(proposals, state)
        for proposal in proposals:
            for trial in state.trials:
                if trial.plan == proposal.plan:
                    assert trial.status != "failed", (
                        f"the plan of trial {trial.id} failed, and is proposed again"
                    )
                    again = trial.fidelity < proposal.fidelity or trial.seed != proposal.seed
                    assert again, f"trial {trial.id} is repeated: give it another seed"
        assert repr(state) == before, "propose changed the state that it was given"

    @pytest.mark.parametrize("name", [LOGGED, "pending trials", "two fidelities"])
    def test_the_same_state_gives_the_same_proposals(self, strategy: Strategy, name: str) -> None:
        first = strategy.propose(scenario(name), PROPOSALS_AT_ONCE)
        disturb_global_randomness()
        again = pickle.loads(pickle.dumps(strategy)).propose(scenario(name), PROPOSALS_AT_ONCE)
        assert again == first, "the same log must give the same proposals: draw from state.rng() alone"

    def test_another_process_gives_the_same_proposals(self, strategy: Strategy) -> None:
        assert_another_process_proposes_the_same([strategy])

    def test_an_exhausted_space_ends_the_study(self, strategy: Strategy) -> None:
        evaluator = ToyEvaluator(make_toy_space(1, bits=(2, 4), ranks=(4, 8)))
        result = Study(evaluator, strategy=strategy, evaluations=60).run()
        assert result.spent < 60, "propose must return [] once every plan was tried"

    def test_a_resumed_study_equals_an_unbroken_one(self, strategy: Strategy, tmp_path: Path) -> None:
        evaluator = ToyEvaluator(fidelities=(0.25, 1.0))
        log = tmp_path / "trials.jsonl"
        options: dict[str, Any] = {
            "evaluations": 12,
            "memory_budget": interpolate_budgets(evaluator.space, 0.3, 0.6),
        }
        copy = pickle.loads(pickle.dumps(strategy))
        unbroken = Study(evaluator, strategy=strategy, log=log, **options).run()
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[: len(lines) // 2]))
        resumed = Study(evaluator, strategy=copy, log=log, **options).run()
        proposed, expected = ([t.proposal for t in found.trials] for found in (resumed, unbroken))
        assert proposed == expected, "a resumed study must propose the same: keep no state on the object"

    def test_it_estimates_exactly_the_plans_evaluated_in_full(self, strategy: Strategy) -> None:
        for name in (LOGGED, "two fidelities", "an empty log", "failed trials"):
            state = scenario(name)
            estimates = strategy.estimate(state)
            expected = {t.plan for t in state.full}
            assert set(estimates.plans) == expected, "estimate must return all plans evaluated in full"
            shape = (len(expected),)
            assert np.shape(estimates.mean) == np.shape(estimates.std) == shape
            assert np.isfinite(estimates.mean).all(), "means must be finite"
            assert (np.isnan(estimates.std) | (estimates.std >= 0)).all(), "deviations must be nan, or >= 0"
            disturb_global_randomness()
            again = strategy.estimate(state)
            assert np.array_equal(again.mean, estimates.mean), "the same log gives other estimates"
            assert np.array_equal(again.std, estimates.std, equal_nan=True)


def assert_another_process_proposes_the_same(strategies: Sequence[Strategy]) -> None:
    """All in one process: most of its time goes into loading libraries."""
    state = scenario(LOGGED)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for strategy in strategies:
            proposed = pool.submit(strategy.propose, state, PROPOSALS_AT_ONCE).result(PROCESS_TIMEOUT)
            assert proposed == strategy.propose(state, PROPOSALS_AT_ONCE)


class EvaluatorContract:
    """What every evaluator must do; subclass it and define the fixture `evaluator`.

    `plans` gives the plans that are evaluated: by default the smallest uniform plan and a random one.
    """

    @pytest.fixture
    def evaluator(self) -> Evaluator:
        raise NotImplementedError("define a fixture `evaluator` in your test class")

    @pytest.fixture
    def plans(self, evaluator: Evaluator) -> list[Plan]:
        state = StudyState(evaluator.space)
        return [p.plan for p in RandomStrategy().propose(state, 1)] + evaluator.space.uniform_plans()[:1]

    def test_it_accepts_its_fidelities_and_the_same_seed_gives_the_same_loss(
        self, evaluator: Evaluator, plans: list[Plan]
    ) -> None:
        assert list(evaluator.fidelities) == sorted(set(evaluator.fidelities))
        assert evaluator.fidelities[0] > 0 and evaluator.fidelities[-1] == 1.0
        for fidelity in evaluator.fidelities:
            evaluation = evaluator.evaluate(plans[0], fidelity=fidelity, seed=1)
            assert (evaluation.fidelity, evaluation.seed) == (fidelity, 1)
            assert evaluation.seconds >= 0
            evaluator.evaluate(plans[-1])
            disturb_global_randomness()
            again = evaluator.evaluate(plans[0], fidelity=fidelity, seed=1)
            assert again.loss == evaluation.loss, f"the same seed gives another loss at fidelity {fidelity:g}"

    def test_loss_is_finite_and_bytes_are_those_of_the_space(
        self, evaluator: Evaluator, plans: list[Plan]
    ) -> None:
        for plan in plans:
            check_evaluation(evaluator.evaluate(plan), evaluator.space, plan)

    def test_the_sensitivities_have_the_shape_of_the_space_and_are_measured_once(
        self, evaluator: Evaluator
    ) -> None:
        sensitivities = evaluator.sensitivities()
        if sensitivities is None:
            pytest.skip("the evaluator measures no sensitivities")
        check_sensitivities(evaluator.space, sensitivities)
        assert sensitivities.cost >= 0 and sensitivities.seconds >= 0
        again = evaluator.sensitivities()
        assert again is not None
        assert np.array_equal(again.bits_damage, sensitivities.bits_damage)
        assert np.array_equal(again.rank_gain, sensitivities.rank_gain)

    def test_it_describes_itself_in_plain_data_that_stays(
        self, evaluator: Evaluator, plans: list[Plan]
    ) -> None:
        """A run is known by it, and resumed only under the same."""
        description = evaluator.describe()
        assert json.loads(json.dumps(description)) == description
        evaluator.evaluate(plans[0])
        assert evaluator.describe() == description

    def test_a_plan_of_another_space_is_refused(self, evaluator: Evaluator) -> None:
        space = evaluator.space
        count = len(evaluator.space) + 1
        wrong = Plan((space.bits[0],) * count, (space.ranks[0],) * count)
        with pytest.raises((ValueError, EvaluationFailed)):
            evaluator.evaluate(wrong)
