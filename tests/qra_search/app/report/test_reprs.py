"""How spaces and results show themselves, in a terminal and in a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_runs import make_run

from qra_search import Plan, SearchResult
from qra_search.app.report.tables import TextTable, render_result, render_text


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return make_run(tmp_path_factory.mktemp("reprs") / "a").read().result


def test_reprs_are_one_line_that_says_what_it_is(result: SearchResult) -> None:
    best = result.best()
    assert best is not None
    assert (
        repr(result) == f"SearchResult({len(result.trials)} trials by guessing, front of {len(result.front)})"
    )
    assert repr(result.space).startswith("SearchSpace(6 groups, bits 2, 3, 4, 8, ranks 0, 4, 8, ")
    assert "\n" not in repr(result.space) and str(result.space) == repr(result.space)
    assert eval(repr(best.plan), {"Plan": Plan}) == best.plan  # noqa: S307 - our own repr


def test_names_are_no_markup() -> None:
    assert "f1[/macro]" in str(TextTable("", ("f1[/macro]",), [("1",)]))


def test_a_result_of_a_plan_alone_says_that_nothing_was_tuned(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "e", evaluations=None).read().result
    assert empty.candidates == ()
    text = render_text(render_result(empty))
    assert "the sensitivities choose" in text and "Nothing was tuned yet" in text
    assert repr(empty) == "SearchResult(0 trials by qra, front of 0)"
