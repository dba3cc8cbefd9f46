"""What is read off a benchmark's rows: the share of the possible gain that is left, its intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from qra_search.app.bench.cell import list_checkpoints

Row = dict[str, Any]
Best = dict[tuple[str, int], np.ndarray]
"""Lowest noise-free loss known (B,) at each budget of the grid, by task and seed."""

FAILED_SHARE = np.inf
"""Share left of a cell that failed: it is shown as failed, and loses to every score."""
LEAST_GAIN = 1e-9
"""Of a plan over the best uniform one, in nats over three budgets; less is rounding, as if there is one group."""
LARGEST_SHARE = 1e6
"""In paired tests, which take no infinite values."""
TIE = 0.005
"""Shares of the possible gain that differ by less count as a tie."""
RESAMPLES = 2000
LEVEL = 0.95


class Interval(NamedTuple):
    """A median with its bootstrap interval."""

    median: float
    low: float
    high: float


class Pair(NamedTuple):
    """Wins, ties and losses of the first strategy against the second, and Wilcoxon's p adjusted after Holm."""

    first: str
    second: str
    win: int
    tie: int
    loss: int
    p: float


def find_best_known(rows: Sequence[Row]) -> Best:
    """The reference, or the best plan of any strategy at any time if that is better."""
    best: Best = {}
    for row in rows:
        if "error" not in row:
            known = np.array([row["reference"], *(look["handed"] for look in row["checkpoints"])]).min(0)
            key = row["task"], row["seed"]
            best[key] = np.minimum(best.get(key, known), known)
    return best


def compute_regret(row: Row, point: float, best: np.ndarray) -> float:
    """Share of the possible gain over the best uniform plan that is left at a checkpoint, summed over three budgets.

    0 is the best known plan at every budget, 1 the best uniform one; above 1 loses to uniform. nan where there is
    nothing to gain.
    """
    looks = [look for look in row.get("checkpoints", ()) if look["at"] == point]
    if not looks:
        return FAILED_SHARE
    at = [row["grid"].index(budget) for budget in row["budgets"]]
    left = np.array(looks[0]["handed"])[at] - best[at]
    possible = np.array(row["uniform"])[at] - best[at]
    return float(left.sum() / possible.sum()) if possible.sum() > LEAST_GAIN else math.nan


def collect_regrets(rows: Sequence[Row], point: float, best: Best) -> dict[str, np.ndarray]:
    """The share left of every strategy that was let run to a checkpoint: float (tasks, seeds), each sorted; nan where a
    cell is missing, or has nothing to gain.

    Of several searches of a cell the shortest counts that was looked at there, or failed on the way.
    """
    tasks, seeds = sorted({row["task"] for row in rows}), sorted({row["seed"] for row in rows})
    reached = [row for row in rows if point in list_checkpoints(row["evaluations"])]
    reached.sort(key=lambda row: -row["evaluations"])
    shares: dict[str, np.ndarray] = {}
    for row in {(row["task"], row["strategy"], row["seed"]): row for row in reached}.values():
        own = shares.setdefault(row["strategy"], np.full((len(tasks), len(seeds)), np.nan))
        known = best.get((row["task"], row["seed"]))  # None: every strategy failed there
        share = FAILED_SHARE if known is None else compute_regret(row, point, known)
        own[tasks.index(row["task"]), seeds.index(row["seed"])] = share
    return dict(sorted(shares.items()))


def bootstrap_median(values: np.ndarray) -> Interval:
    """The median of values (N,) or of all of (seeds, tasks), and its percentile interval.

    Of a matrix the rows are resampled, since the cells of one seed are not independent of each other; nan is left
    out (a seed that one task lacks), and so is a seed that all tasks lack. Infinite if a cell failed, nan if none is
    left.
    """
    values = np.asarray(values, dtype=float)
    if np.isinf(values).any():
        return Interval(FAILED_SHARE, FAILED_SHARE, FAILED_SHARE)
    values = values[~np.isnan(values.reshape(len(values), -1)).all(1)]
    if not len(values):
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.nanmedian(values[rows].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.nanmedian(values)), float(low), float(high))


def compare_pairs(shares: np.ndarray, names: Sequence[str]) -> list[Pair]:
    """Every pair of strategies over the blocks of shares (N, K) that both have (nan: lacks it)."""
    both, shares = [], np.minimum(shares, LARGEST_SHARE)
    for i, j in combinations(range(len(names)), 2):
        shared = ~np.isnan(shares[:, [i, j]]).any(1)
        if shared.sum() > 1:
            both.append((names[i], names[j], shares[shared, i], shares[shared, j]))
    adjusted = adjust_p_values(
        np.array(
            [
                1.0
                if np.allclose(a, b, rtol=0, atol=1e-12)
                else stats.wilcoxon(a, b, zero_method="zsplit").pvalue
                for _, _, a, b in both
            ]
        )
    )
    return [
        Pair(
            first,
            second,
            int((a < b - TIE).sum()),
            int((np.abs(a - b) <= TIE).sum()),
            int((a > b + TIE).sum()),
            p,
        )
        for (first, second, a, b), p in zip(both, adjusted.tolist(), strict=True)
    ]


def adjust_p_values(p_values: np.ndarray) -> np.ndarray:
    """P-values (N,) adjusted for N tests (Holm 1979).

    >>> adjust_p_values(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
