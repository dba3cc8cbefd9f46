"""Intervals of ratios by paired bootstrap over rows, of shares and of means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, t, ttest_ind

from qra_search.app.intervals import (
    MIN_ROWS,
    bootstrap_log_ratio,
    compute_mean_interval,
    compute_score_interval,
    compute_seeds_half_width,
    compute_share_interval,
    compute_standard_error,
)


def test_the_interval_of_a_ratio_is_the_delta_methods_where_rows_are_many() -> None:
    one, two = np.random.default_rng(1).gamma(4.0, 0.5, (2, 4000))
    found = bootstrap_log_ratio(one.tolist(), two.tolist())
    assert found is not None
    deviation = (one / one.mean() - two / two.mean()).std() / 4000**0.5
    middle = np.log(one.mean() / two.mean())
    assert found == pytest.approx(
        (middle - 1.96 * deviation, middle + 1.96 * deviation), abs=0.1 * 1.96 * deviation
    )


def test_a_loss_that_is_a_share_of_the_other_in_every_row_is_exactly_that_share() -> None:
    rows = np.random.default_rng(2).uniform(0.1, 50.0, 64)
    assert bootstrap_log_ratio((0.9 * rows).tolist(), rows.tolist()) == pytest.approx((np.log(0.9),) * 2)


def test_too_few_rows_give_none_and_the_same_rows_the_same() -> None:
    few = [1.0] * (MIN_ROWS - 1)
    assert bootstrap_log_ratio(few, few) is None and compute_mean_interval(few) is None
    lone = [0.0] * 19 + [1.0]
    assert bootstrap_log_ratio(lone, lone) is None, "a draw without the one row that has a loss has no ratio"
    rows = np.random.default_rng(3).uniform(1, 2, (2, 20)).tolist()
    assert bootstrap_log_ratio(*rows) == bootstrap_log_ratio(*rows)


@pytest.mark.parametrize(("right", "rows"), [(0, 20), (1, 64), (32, 64), (60, 64), (64, 64)])
def test_the_interval_of_a_share_is_wilsons(right: int, rows: int) -> None:
    theirs = binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert compute_share_interval(right / rows, rows) == pytest.approx((theirs.low, theirs.high), abs=1e-4)
    assert compute_score_interval([1.0] * right + [0.0] * (rows - right)) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-4
    )


def test_a_mean_of_other_scores_has_the_normal_interval() -> None:
    scores = np.random.default_rng(5).normal(10, 3, 50)
    error = scores.std(ddof=1) / 50**0.5
    assert compute_standard_error(scores.tolist()) == pytest.approx(error)
    assert compute_mean_interval(scores.tolist()) == pytest.approx(
        (scores.mean() - 1.96 * error, scores.mean() + 1.96 * error)
    )
    assert compute_score_interval(scores.tolist()) == compute_mean_interval(scores.tolist())


def test_the_interval_of_differences_takes_no_side() -> None:
    gains = [1.0] + [0.0] * 63
    low, high = compute_mean_interval(gains) or (0, 0)
    assert low < 0 < high and compute_mean_interval([-gain for gain in gains]) == pytest.approx((-high, -low))


@pytest.mark.parametrize("counts", [(2, 2), (3, 5), (4, 1), (1, 2)])
def test_the_spread_over_seeds_widens_as_in_a_t_test(counts: tuple[int, int]) -> None:
    one, two = (np.random.default_rng(9).normal(1.0, 0.1, count) for count in counts)
    half = compute_seeds_half_width(one.tolist(), two.tolist())
    if 1 in counts:  # scipy's test takes no single value
        several = max(one, two, key=len)
        freedom = len(several) - 1
        assert half == pytest.approx(
            t.ppf(0.975, freedom) * several.std(ddof=1) * (1 + 1 / len(several)) ** 0.5
        )
    else:
        theirs = ttest_ind(one, two).confidence_interval(0.95)
        assert half == pytest.approx((theirs.high - theirs.low) / 2)


def test_single_seeds_have_no_spread() -> None:
    assert np.isnan(compute_seeds_half_width([1.0], [2.0]))
