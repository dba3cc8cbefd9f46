"""What is said of a search before it begins."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from fakes import AdditiveEvaluator

from qra_search import BudgetTooSmall
from qra_search.config import RunConfig, make_config
from qra_search.workflow.dry_run import dry_run, embeddings_hint


class Estimating(AdditiveEvaluator):
    def sensitivities_charge(self) -> float:
        return 3.0

    def estimate(self) -> Mapping[str, float]:
        return {"setup_seconds": 10.0, "sensitivities_seconds": 4.0, "evaluation_seconds": 2.0}


def test_the_time_counts_the_sensitivities_and_all_evaluations() -> None:
    estimate = dry_run(Estimating(), make_config({"search": {"evaluations": 12}}))["estimate"]
    assert estimate["total_seconds"] == 10 + 4 + 2 * 12 and estimate["sensitivities_charge"] == 3.0


def test_the_time_of_a_plan_alone_counts_no_evaluations() -> None:
    assert dry_run(Estimating(), RunConfig(), evaluations=0)["estimate"]["total_seconds"] == 10 + 4


def test_without_an_estimate_the_time_is_unknown() -> None:
    assert dry_run(AdditiveEvaluator(), RunConfig())["estimate"] == {}


def test_a_budget_that_no_plan_fits_is_refused() -> None:
    with pytest.raises(BudgetTooSmall):
        dry_run(AdditiveEvaluator(), make_config({"search": {"memory": "1KiB"}}))


def test_embeddings_that_take_much_of_the_budget_are_named_with_what_halves_them() -> None:
    config = make_config({"quantization": {"embeddings": 16}})
    assert embeddings_hint(config, 30, [100, 200]) == (
        "30% of the budget, mostly embeddings: quantization.embeddings=8 halves them"
    )
    assert embeddings_hint(config, 20, [100, 200]) is None
    assert embeddings_hint(RunConfig(), 30, [100]) is None, "they are searched"
    assert embeddings_hint(config.model_copy(update={"evaluator": "landscape"}), 30, [100]) is None
