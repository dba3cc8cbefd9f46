"""What a search is said to cost and to gain before it begins."""

from __future__ import annotations

import math

from fakes import AdditiveEvaluator

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.solve import solve
from qra_search.workflow.dry_run import Costs, foretold_costs, worth_text


class Foretelling(AdditiveEvaluator):
    def sensitivities_charge(self) -> float:
        return 5.0

    def evaluation_seconds(self) -> float:
        return 30.0

    def estimate(self) -> dict[str, float]:
        return {"setup_seconds": 1.0, "sensitivities_seconds": 4.0, "evaluation_seconds": 2.0}


def test_the_sensitivities_come_on_top_of_the_evaluations_and_are_said_beside_them() -> None:
    costs = foretold_costs(Foretelling(), 10)
    assert costs is not None and costs.text == (
        "10 plans tuned briefly, about 5 min 00 s; before them the sensitivities, as long as 5 more, about 2 min 30 s"
    )
    assert Costs(4.5).text == "4.5 plans tuned briefly"


def test_measured_sensitivities_cost_nothing_more_and_an_evaluator_that_foretells_nothing_says_nothing() -> None:
    sensitivities = AdditiveEvaluator().sensitivities()
    assert isinstance(sensitivities, Sensitivities)
    known = foretold_costs(AdditiveEvaluator(), 15, sensitivities)
    assert known is not None and known.sensitivities == 0 and math.isnan(known.seconds)
    assert foretold_costs(AdditiveEvaluator(), 15) is None


def test_a_search_is_said_to_check_what_is_clear_and_to_measure_what_is_not() -> None:
    evaluator = AdditiveEvaluator()
    sensitivities = evaluator.sensitivities()
    assert sensitivities is not None
    clear = solve(evaluator.space, sensitivities, evaluator.space.memory.minimum + evaluator.space.memory.maximum >> 1)
    assert clear.best_uniform is not None
    assert ("checks the prediction" in worth_text(clear)) == clear.best_uniform.is_certain
    assert "measures it" in worth_text(None)
