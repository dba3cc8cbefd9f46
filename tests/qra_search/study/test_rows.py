"""Results as rows and as frames of pandas."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from report_runs import make_run

from qra_search import SearchResult


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    return make_run(tmp_path_factory.mktemp("frames") / "a").result()


def test_rows_are_the_candidates_cheapest_first_and_say_which_are_on_the_front(result: SearchResult) -> None:
    table = result.rows()
    assert [(r["loss"], r["memory_bytes"]) for r in table] == [(c.loss, c.memory_bytes) for c in result.candidates]
    assert [tuple(r["bits"]) for r in table if r["on_front"]] == [c.plan.bits for c in result.front]
    assert sum(r["uniform"] for r in table) == len(result.uniform)


def test_rows_of_trials_keep_failures_with_their_reason(result: SearchResult) -> None:
    table = result.rows("trials")
    assert [r["id"] for r in table] == [t.id for t in result.trials]
    failed = [r for r in table if r["status"] == "failed"]
    assert failed and all(r["loss"] is None and "out of memory" in r["reason"] for r in failed)


def test_a_frame_of_pandas_holds_the_same_table(result: SearchResult) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = result.to_pandas("trials")
    done = frame[frame.status == "done"]
    assert list(done.loss) == [t.loss for t in result.trials if t.done]
    assert frame.loss.isna().sum() == len(result.failures())
    candidates = result.to_pandas()
    assert (
        candidates.loc[candidates.loss.idxmin(), "memory_bytes"]
        == min(result.candidates, key=lambda c: c.loss).memory_bytes
    )


def test_metrics_have_columns_of_their_own(result: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas", reason="pandas is not installed")
    table = [{"id": 0, "metrics": {"a": 1.0}}, {"id": 1, "metrics": None}, {"id": 2, "metrics": {"a": 2.0, "b": 3.0}}]
    monkeypatch.setattr(SearchResult, "rows", lambda self, of: [*table, {"id": 3, "metrics": {}}])
    frame = result.to_pandas()
    assert list(frame.columns) == ["id", "metrics.a", "metrics.b"]
    known = frame.astype(object).where(frame.notna(), "unknown").to_numpy().tolist()
    assert known == [[0, 1.0, "unknown"], [1, "unknown", "unknown"], [2, 2.0, 3.0], [3, "unknown", "unknown"]]


def test_missing_pandas_is_named(result: SearchResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        result.to_pandas()


def test_rows_of_something_else_are_refused(result: SearchResult) -> None:
    wrong: Any = "plans"
    with pytest.raises(ValueError, match="rows of 'plans' are not kept: say one of candidates, trials"):
        result.rows(wrong)
