"""What an application asks of an evaluator beyond a search is asked only of one that says it can."""

from __future__ import annotations

import pytest

from qra_eval import QuantizedLoRAEvaluator
from qra_search.app.config import RunConfig
from qra_search.app.dry_run import describe_rows, describe_run, estimate_cost
from qra_search.app.evaluator import TunableEvaluator, check_can_tune
from qra_search.errors import BadInput
from qra_search.testing.scenarios import ToyEvaluator


def test_of_an_evaluator_that_only_searches_nothing_more_is_asked() -> None:
    formula = ToyEvaluator()
    facts = describe_run(formula, RunConfig())
    assert facts["rows"] == {} and facts["estimate"] == {} and facts["example"] == []
    assert describe_rows(formula) == [] and estimate_cost(formula, 10, is_measured=False) is None
    with pytest.raises(BadInput, match="cannot fine-tune a plan"):
        check_can_tune(formula, RunConfig())


def test_the_real_evaluator_can_be_tuned_and_the_contract_is_abstract() -> None:
    assert issubclass(QuantizedLoRAEvaluator, TunableEvaluator)
    assert not QuantizedLoRAEvaluator.__abstractmethods__
    assert {
        "tune",
        "estimate_search_cost",
        "row_counts",
        "list_fitting_cards",
    } <= TunableEvaluator.__abstractmethods__
