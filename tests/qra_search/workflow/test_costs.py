"""What a search is said to cost and to gain before it begins."""

from __future__ import annotations

import math

from fakes import AdditiveEvaluator

from qra_search.config import make_config
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.study.forecast import forecast
from qra_search.workflow.costs import Costs, foretold_costs, worth_text
from qra_search.workflow.dry_run import dry_run


class Foretelling(AdditiveEvaluator):
    def sensitivities_charge(self) -> float:
        return 5.0

    def evaluation_seconds(self) -> float:
        return 30.0

    def estimate(self) -> dict[str, float]:
        return {"setup_seconds": 1.0, "sensitivities_seconds": 4.0, "evaluation_seconds": 2.0}


def test_the_charge_is_warned_of_from_a_third_of_the_evaluations_on() -> None:
    assert "more than a third" in Costs(12, 4.1).text and "more than a third" not in Costs(12, 4.0).text
    assert "charged as 4.1 of 12 evaluations" in Costs(12, 4.1).text


def test_the_time_is_that_of_the_evaluations_that_are_left() -> None:
    costs = foretold_costs(Foretelling(), 15)
    assert costs is not None and (costs.sensitivities, costs.left) == (5.0, 10.0)
    assert costs.text.startswith("10 plans tuned briefly, about 5 min 00 s;")


def test_a_measured_prior_is_charged_what_it_took_and_an_evaluator_that_foretells_nothing_says_nothing() -> None:
    sensitivities = AdditiveEvaluator().sensitivities()
    assert isinstance(sensitivities, Sensitivities)
    known = foretold_costs(AdditiveEvaluator(), 15, sensitivities)
    assert known is not None and known.sensitivities == sensitivities.cost and math.isnan(known.seconds)
    assert foretold_costs(AdditiveEvaluator(), 15) is None


def test_a_dry_run_is_charged_what_the_evaluator_foretells() -> None:
    estimate = dry_run(Foretelling(), make_config({"search": {"evaluations": 12}}))["estimate"]
    assert (estimate["sensitivities_charge"], estimate["evaluations_left"]) == (5.0, 7.0)


def test_a_search_is_said_to_check_what_is_clear_and_to_measure_what_is_not() -> None:
    evaluator = AdditiveEvaluator()
    sensitivities = evaluator.sensitivities()
    assert sensitivities is not None
    clear = forecast(
        evaluator.space, sensitivities, evaluator.space.memory.minimum + evaluator.space.memory.maximum >> 1
    )
    assert clear is not None and clear.rival is not None
    assert ("checks the prediction" in worth_text(clear)) == clear.rival.certain
    assert "measures it" in worth_text(None)
