"""What is said of a run's rows: too few, and those that are cut."""

from __future__ import annotations

from typing import Any

from fakes import AdditiveEvaluator

from qra_search.config import make_config
from qra_search.evaluation.evaluator import Evaluator, RowCount
from qra_search.workflow.dry_run import rows_of_test, rows_text, say_rows


class Counting(AdditiveEvaluator):
    def __init__(self, **counts: RowCount):
        super().__init__()
        self.counts = counts

    def row_counts(self) -> dict[str, RowCount]:
        return self.counts


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def said(evaluator: Evaluator) -> list[str]:
    view: Any = Said()
    say_rows(evaluator, view)
    lines: list[str] = view.lines
    return lines


ENOUGH = {"train": RowCount(96, 96), "validation": RowCount(64, 64), "test": RowCount(128, 128)}


def test_of_enough_rows_nothing_is_said_but_in_a_dry_run() -> None:
    assert said(Counting(**ENOUGH)) == [] == said(AdditiveEvaluator())
    assert rows_text(ENOUGH) == ["96 train, 64 validation, 128 test"]


def test_too_few_rows_are_counted_and_below_32_warned_of() -> None:
    few = {"train": RowCount(800, 24), "validation": RowCount(64, 40), "test": RowCount(128, 3)}
    first, warning = said(Counting(**few))
    assert first == "rows: 24 train (800 asked for), 40 validation (64 asked for), 3 test (128 asked for)"
    assert warning.startswith("warning: 24 train and 3 test rows: fewer than 32 say little")


def test_rows_that_are_cut_are_counted_with_the_length_that_keeps_them_whole() -> None:
    cut = {**ENOUGH, "test": RowCount(128, 128, 5, 900), "train": RowCount(96, 96, 7, 411)}
    assert said(Counting(**cut))[1] == (
        "rows: 12 of 288 rows are cut to training.max_length, the longest has 900 tokens: "
        "--set training.max_length=900 keeps them whole"
    )


def test_prompts_with_several_answers_are_counted() -> None:
    counts = {**ENOUGH, "train": RowCount(96, 96, conflicting=4)}
    assert said(Counting(**counts))[1].startswith("warning: 4 rows have a prompt that occurs again with another answer")


def test_a_comparison_is_of_the_test_rows_that_there_are() -> None:
    config = make_config({"finetune": {"test_rows": 50}})
    assert rows_of_test(Counting(test=RowCount(50, 12)), config) == 12
    assert rows_of_test(AdditiveEvaluator(), config) == 50
