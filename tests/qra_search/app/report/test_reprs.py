"""How spaces and results show themselves, in a terminal and in a notebook."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import AdditiveEvaluator
from report_runs import EVIL, make_run
from rich.console import Console

from qra_search import Plan, SearchResult, Study
from qra_search.app.report.tables import TextTable, render_html, render_result
from qra_search.space.memory import format_bytes


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return make_run(tmp_path_factory.mktemp("reprs") / "a").result()


def shown(thing: Any, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_reprs_are_one_line_that_says_what_it_is(result: SearchResult) -> None:
    best = result.best()
    assert best is not None
    assert repr(result) == (
        f"SearchResult({len(result.trials)} trials by guessing, front of {len(result.front)}, "
        f"best loss {best.loss:.4g} at {format_bytes(best.memory_bytes)})"
    )
    assert repr(result.space).startswith("SearchSpace(6 groups, bits 2, 3, 4, 8, ranks 0, 4, 8, ")
    assert "\n" not in repr(result.space) and str(result.space) == repr(result.space)
    assert eval(repr(best.plan), {"Plan": Plan}) == best.plan  # noqa: S307 - our own repr


def test_a_result_shows_the_finding_and_the_plans_beside_uniform(result: SearchResult) -> None:
    comparison = result.comparison()
    assert comparison is not None and comparison.baseline is not None and comparison.change is not None
    for text in (shown(result), re.sub(r"<[^>]*>", "", result._repr_html_())):
        assert "Validation loss" in text
        assert f"{comparison.chosen.loss:#.4g}" in text and f"{comparison.baseline.loss:#.4g}" in text
        assert f"{100 * abs(comparison.change.share):.1f}%" in text


def test_names_are_escaped_in_a_notebook() -> None:
    assert "f1[/macro]" in str(TextTable("", ("f1[/macro]",), [("1",)]))
    html = render_html(TextTable("", ("name",), [(EVIL,)]))
    assert "<script" not in html and "&lt;/script&gt;" in html


def test_a_result_of_a_plan_alone_says_that_nothing_was_tuned(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "e", evaluations=None).result()
    assert empty.candidates == ()
    assert "the sensitivities choose" in shown(empty) and "Nothing was tuned yet" in empty._repr_html_()
    assert repr(empty) == "SearchResult(0 trials by qra, front of 0, nothing fits)"


def test_what_was_only_proposed_is_no_evaluation() -> None:
    study = Study(AdditiveEvaluator(), strategy="random", evaluations=8)
    for tell in (True, False):
        proposal = study.ask()
        assert proposal is not None
        if tell:
            study.tell(proposal, study.evaluator.evaluate(proposal.plan))
    assert "1 evaluations, 1 more not finished" in shown(render_result(study.result()))
