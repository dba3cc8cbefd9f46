"""Intervals of differences of test losses by paired bootstrap over rows."""

from __future__ import annotations

import numpy as np
import pytest

from qra_search import Plan
from qra_search.runs.comparison import LEAST_ROWS, TestResult, difference, paired_interval


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution_where_rows_are_many() -> None:
    change = np.random.default_rng(1).normal(0.3, 2.0, 4000)
    found = paired_interval(change.tolist(), [0.0] * 4000, [1] * 4000)
    assert found is not None
    wide = 1.96 * change.std() / 4000**0.5
    assert found == pytest.approx((change.mean() - wide, change.mean() + wide), abs=0.1 * wide)


def test_what_all_rows_share_is_no_part_of_the_difference() -> None:
    hard = np.random.default_rng(2).uniform(0.0, 50.0, 64)
    found = paired_interval((hard + 1.0).tolist(), hard.tolist(), [2] * 64)
    assert found == pytest.approx((0.5, 0.5))


def test_too_few_rows_give_none_and_the_same_rows_the_same() -> None:
    assert paired_interval([1.0] * (LEAST_ROWS - 1), [2.0] * (LEAST_ROWS - 1), [1] * (LEAST_ROWS - 1)) is None
    rows = np.random.default_rng(3).normal(size=(2, 20)).tolist()
    assert paired_interval(rows[0], rows[1], [3] * 20) == paired_interval(rows[0], rows[1], [3] * 20)


def on_test_rows(*losses: float, rows: tuple[float, ...] = (), failed: str = "") -> TestResult:
    return TestResult("found", Plan((2,), (4,)), 9, losses, failed=failed, row_nats=rows, row_tokens=(1,) * len(rows))


def test_without_rows_the_spread_over_seeds_is_the_interval_and_one_seed_has_none() -> None:
    assert difference(on_test_rows(1.0), on_test_rows(2.0)) is None
    low, high = difference(on_test_rows(1.0, 1.2), on_test_rows(2.0, 2.0)) or (0.0, 0.0)
    # Standard error of the mean of two losses that differ by 0.2: 0.1.
    assert (low, high) == pytest.approx((-0.9 - 0.196, -0.9 + 0.196))
    assert difference(on_test_rows(1.0, failed="out of memory: 1"), on_test_rows(2.0)) is None


def test_rows_and_seeds_widen_the_interval_together() -> None:
    rows = tuple(np.random.default_rng(4).normal(1.0, 1.0, 40))
    flat = (2.0,) * 40
    mean = float(np.mean(rows))
    alone = difference(on_test_rows(mean, rows=rows), on_test_rows(2.0, rows=flat))
    both = difference(on_test_rows(mean - 0.3, mean + 0.3, rows=rows), on_test_rows(2.0, 2.0, rows=flat))
    assert alone is not None and both is not None
    assert both[0] < alone[0] and both[1] > alone[1]
