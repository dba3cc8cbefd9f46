"""Shares of rows are shown with their intervals."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from qra_search import Plan
from qra_search.report.shares import metric_text, share_interval
from qra_search.runs.comparison import TestResult


@pytest.mark.parametrize(("right", "rows"), [(0, 20), (1, 64), (32, 64), (60, 64), (64, 64)])
def test_the_interval_is_wilsons(right: int, rows: int) -> None:
    theirs = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert share_interval(right / rows, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_a_share_has_its_interval_if_its_rows_are_known_and_other_figures_have_none() -> None:
    metrics = {"accuracy": 0.5, "perplexity": 12.3456, "margin": 0.25}
    known = TestResult("found", Plan((2,), (4,)), 1, (1.0,), metrics, scored=64)
    assert [metric_text(known, name) for name in metrics] == ["50.0 % (38 to 62)", "12.35", "0.25"]
    unknown = TestResult("found", Plan((2,), (4,)), 1, (1.0,), metrics)
    assert "50" in metric_text(unknown, "accuracy") and "(" not in metric_text(unknown, "accuracy")
