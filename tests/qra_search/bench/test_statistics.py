"""Statistics of the benchmark, against other sources."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qra_search.bench import statistics


def test_ranks_friedman_and_critical_difference_are_those_of_the_literature() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((14, 4))
    ranks = statistics.mean_ranks(scores, tuple("abcd"))
    # Demšar (2006), table 5: q of 2.569 for four classifiers at 0.05; with 14 data sets the difference is 1.25.
    assert ranks["critical_difference"] == pytest.approx(1.25, abs=0.005)
    assert ranks["friedman_p"] == stats.friedmanchisquare(*scores.T).pvalue
    expected = [np.mean([stats.rankdata(row)[k] for row in scores]) for k in range(4)]
    assert ranks["mean"] == dict(zip("abcd", expected, strict=True))


def test_holm_equals_the_textbook_example() -> None:
    assert statistics.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_bootstrap_intervals_cover_the_median() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        interval = statistics.bootstrap_median(rng.normal(size=31))
        hits += interval["low"] <= 0.0 <= interval["high"]
    assert hits >= 88


def test_seeds_that_were_not_run_change_no_interval() -> None:
    values = np.array([[0.1, 0.4], [0.2, np.nan], [0.3, 0.2]])
    with_gaps = np.vstack([values, np.full((20, 2), np.nan)])
    assert statistics.bootstrap_median(with_gaps) == statistics.bootstrap_median(values)


def test_wins_ties_and_losses_add_up() -> None:
    scores = np.array([[0.1, 0.2], [0.2, 0.2], [0.3, 0.1], [0.1, 0.5]])
    (pair,) = statistics.pairwise(scores, ("a", "b"))
    assert (pair["win"], pair["tie"], pair["loss"]) == (2, 1, 1)
    assert pair["p"] == pytest.approx(stats.wilcoxon(scores[:, 0], scores[:, 1], zero_method="zsplit").pvalue)
