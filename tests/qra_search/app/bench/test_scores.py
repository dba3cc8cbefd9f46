"""Statistics of the benchmark, against other sources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from qra_search.app.bench import tables as scores


def test_holm_equals_the_textbook_example() -> None:
    assert scores.adjust_p_values(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )


def test_bootstrap_intervals_cover_the_median() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(100):
        interval = scores.bootstrap_median(rng.normal(size=31))
        hits += interval.low <= 0.0 <= interval.high
    assert hits >= 88


def test_seeds_that_were_not_run_change_no_interval() -> None:
    values = np.array([[0.1, 0.4], [0.2, np.nan], [0.3, 0.2]])
    with_gaps = np.vstack([values, np.full((20, 2), np.nan)])
    assert scores.bootstrap_median(with_gaps) == scores.bootstrap_median(values)


def test_wins_ties_and_losses_are_counted_over_the_blocks_that_both_have() -> None:
    shares = np.array(
        [[0.1, 0.2, np.nan], [0.2, 0.2, 0.0], [0.3, 0.1, 0.0], [0.1, 0.5, 0.5], [0.3, np.nan, 0.5]]
    )
    pairs = {(pair.first, pair.second): pair for pair in scores.compare_strategies(shares, ("a", "b", "c"))}
    assert pairs["a", "b"][2:5] == (2, 1, 1) and pairs["a", "c"][2:5] == (2, 0, 2)
    (alone,) = scores.compare_strategies(shares[:4, :2], ("a", "b"))
    assert alone.p == pytest.approx(stats.wilcoxon(shares[:4, 0], shares[:4, 1], zero_method="zsplit").pvalue)


def make_row(strategy: str, seed: int, **changes: Any) -> dict[str, Any]:
    look = {"at": 10.0, "handed": [1.0, 1.0, 1.0]}
    row = {
        "task": "t",
        "strategy": strategy,
        "seed": seed,
        "evaluations": 10.0,
        "grid": [1, 2, 3],
        "budgets": [1, 2, 3],
    }
    row |= {"trials": 0, "failed": 0}
    return row | {"reference": [0.9] * 3, "uniform": [1.2] * 3, "checkpoints": [look]} | changes


def test_a_seed_at_which_every_strategy_failed_is_a_failure_of_each() -> None:
    rows = [make_row("a", 0), make_row("a", 1, error="KeyError", checkpoints=[])]
    shares = scores.collect_regrets(rows, 10.0, scores.find_best_known(rows))
    assert shares["a"].tolist() == [[pytest.approx(1 / 3), np.inf]]
    assert "| a | 2 | failed | failed | 1 |" in scores.to_markdown(rows)


def test_a_task_with_nothing_to_gain_over_uniform_has_no_share() -> None:
    rows = [make_row(name, seed, uniform=[0.9] * 3, reference=[0.9] * 3) for name in "ab" for seed in (0, 1)]
    assert np.isnan(scores.collect_regrets(rows, 10.0, scores.find_best_known(rows))["a"]).all()
    text = scores.to_markdown(rows)
    assert "| a | 0 |  |  | 0 |" in text and "| b | 0 |  |  | 0 |" in text
