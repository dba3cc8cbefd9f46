"""What is said of a run before it begins: cost, gain, rows; more is asked only of an evaluator that can tune."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import AdditiveEvaluator, QuietTunable

from qra_eval import QuantizedLoRAEvaluator
from qra_search import BudgetTooSmall
from qra_search.app.config import RunConfig, make_config
from qra_search.app.dry_run import (
    describe_rows,
    describe_run,
    describe_search_cost,
    format_cost,
    warn_about_rows,
)
from qra_search.app.evaluator import RowCount, TunableEvaluator, check_can_tune
from qra_search.errors import BadInput
from qra_search.study.study import Listener
from qra_search.testing.scenarios import ToyEvaluator


class Estimating(AdditiveEvaluator, QuietTunable):
    """An evaluator that estimates its cost, and counts the rows that it is given."""

    def __init__(self, **counts: RowCount):
        super().__init__()
        self.counts = counts

    def sensitivity_cost(self) -> float:
        return 5.0

    def evaluation_seconds(self) -> float:
        return 30.0

    def estimate_search_cost(self) -> dict[str, float]:
        return {"setup_seconds": 10.0, "sensitivities_seconds": 4.0, "evaluation_seconds": 2.0}

    def row_counts(self) -> dict[str, RowCount]:
        return self.counts


@pytest.mark.parametrize(("evaluations", "seconds"), [(None, 10 + 4 + 2 * 12), (0, 10 + 4)])
def test_the_time_counts_the_sensitivities_and_all_evaluations(
    evaluations: float | None, seconds: float
) -> None:
    config = make_config({"search": {"evaluations": 12}})
    estimate = describe_run(Estimating(), config, evaluations)["estimate"]
    assert estimate["total_seconds"] == seconds and estimate["sensitivity_cost"] == 5.0


def test_without_an_estimate_the_time_is_unknown_and_a_budget_that_no_plan_fits_is_refused() -> None:
    assert describe_run(AdditiveEvaluator(), RunConfig())["estimate"] == {}
    with pytest.raises(BudgetTooSmall):
        describe_run(AdditiveEvaluator(), make_config({"search": {"memory": "1KiB"}}))


def test_the_cost_of_a_search_names_the_sensitivities_unless_they_are_measured() -> None:
    assert describe_search_cost(Estimating(), 10, is_measured=False) == (
        "10 plans tuned briefly, about 5 min 00 s. "
        "Measuring the sensitivities first takes as long as 5 more, about 2 min 30 s"
    )
    assert (
        describe_search_cost(Estimating(), 10, is_measured=True) == "10 plans tuned briefly, about 5 min 00 s"
    )
    assert format_cost(4.5) == "4.5 plans tuned briefly"
    assert describe_search_cost(AdditiveEvaluator(), 15, is_measured=False) is None


ENOUGH = {"train": RowCount(96, 96), "validation": RowCount(64, 64), "test": RowCount(128, 128)}


@pytest.mark.parametrize(
    ("counts", "lines"),
    [
        ({}, []),
        (ENOUGH, []),
        (
            {"train": RowCount(800, 24), "validation": RowCount(64, 40), "test": RowCount(128, 3)},
            [
                "rows: 24 train (800 asked for), 40 validation (64 asked for), 3 test (128 asked for)",
                "warning: only 24 train and 3 test rows. "
                "A loss on fewer than 32 rows says little about other rows",
            ],
        ),
        (
            {**ENOUGH, "test": RowCount(128, 128, 5, 900), "train": RowCount(96, 96, 7, 411)},
            [
                "rows: 96 train, 64 validation, 128 test",
                "rows: 12 of 288 rows are cut to training.max_length, the longest has 900 tokens: "
                "--set training.max_length=900 keeps them whole",
            ],
        ),
        (
            {
                "train": RowCount(96, 24, available=24),
                "validation": RowCount(64, 64, available=80),
                "test": RowCount(8, 8),
            },
            [
                "rows: 24 train (96 asked for), 64 of 80 validation, 8 test",
                "warning: only 24 train and 8 test rows. "
                "A loss on fewer than 32 rows says little about other rows",
            ],
        ),
    ],
)
def test_rows_that_are_few_or_cut_are_reported(counts: dict[str, RowCount], lines: list[str]) -> None:
    heard: list[str] = []

    class Heard(Listener):
        def say(self, text: str) -> None:
            heard.append(text)

    evaluator: Any = Estimating(**counts)
    warn_about_rows(evaluator, Heard())
    assert heard == lines
    assert describe_rows(evaluator)[:1] == (
        []
        if not counts
        else [heard[0].removeprefix("rows: ")]
        if heard
        else ["96 train, 64 validation, 128 test"]
    )


def test_of_an_evaluator_that_only_searches_nothing_more_is_asked() -> None:
    formula = ToyEvaluator()
    facts = describe_run(formula, RunConfig())
    assert facts["rows"] == {} and facts["estimate"] == {} and facts["example"] == []
    assert describe_rows(formula) == [] and describe_search_cost(formula, 10, is_measured=False) is None
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
