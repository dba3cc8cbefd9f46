"""Contract tests for evaluators: subclass the class, give it one fixture, and pytest runs the rest.

    class TestMine(EvaluatorContract):
        @pytest.fixture
        def evaluator(self):
            return MyEvaluator()

Every test says in its name what must hold.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from qra_search.allocate.sensitivities import check_sensitivities
from qra_search.errors import EvaluationFailed
from qra_search.evaluator import Evaluator, check_evaluation
from qra_search.log.state import StudyState
from qra_search.schemas import Plan
from qra_search.strategies.simple import RandomStrategy
from qra_search.testing.scenarios import disturb_global_randomness


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
