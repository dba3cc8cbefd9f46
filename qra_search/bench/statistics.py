"""Statistics over paired results: bootstrap intervals, ranks with a critical difference, pairwise tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 2000
TIE = 0.005
"""Shares of the possible gain that differ by less count as a tie."""


def bootstrap_median(values: np.ndarray, level: float = 0.95, seed: int = 0) -> dict[str, float]:
    """`median`, `low` and `high`: the median of values (N,) or of the rows of (seeds, tasks), and its percentile
    interval.

    Of a matrix the rows are resampled, since the cells of one seed are not independent of each other; nan is left
    out (a seed that one task lacks), and so is a seed that all tasks lack.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values.reshape(len(values), -1)).all(1)]
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.nanmedian(values[rows].reshape(RESAMPLES, -1), axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return {"median": float(np.nanmedian(values)), "low": float(low), "high": float(high)}


def mean_ranks(scores: np.ndarray, names: Sequence[str], alpha: float = 0.05) -> dict[str, Any]:
    """Ranks of scores (N, K), lower is better, ties shared (Demšar 2006).

    Returns:
        `mean` rank by name, 1 is best; `friedman_p` (of Wilcoxon's test for two strategies, for which Friedman's is not
        defined; None if there is nothing to test); and the `critical_difference` of Nemenyi's test,
        q sqrt(K (K + 1) / 6 N), with q the studentized range over the square root of 2.
    """
    blocks, k = scores.shape
    if (scores == scores[:, :1]).all():
        p = None
    elif k == 2:
        p = wilcoxon_p(scores[:, 0], scores[:, 1])
    else:
        p = float(stats.friedmanchisquare(*scores.T).pvalue)
    q = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / np.sqrt(2)
    return {
        "mean": dict(zip(names, stats.rankdata(scores, axis=1).mean(0).tolist(), strict=True)),
        "friedman_p": p,
        "critical_difference": q * np.sqrt(k * (k + 1) / (6 * blocks)),
    }


def wilcoxon_p(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of the signed-rank test on pairs; 1 if all are equal."""
    if np.allclose(first, second, rtol=0, atol=1e-12):
        return 1.0
    return float(stats.wilcoxon(first, second, zero_method="zsplit").pvalue)


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values (N,) adjusted for N tests (Holm 1979).

    >>> holm(np.array([0.01, 0.04, 0.03])).round(2).tolist()
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def pairwise(scores: np.ndarray, names: Sequence[str], tie: float = TIE) -> list[dict[str, Any]]:
    """Every pair of strategies over the blocks of scores (N, K) that both have (nan: lacks it): wins, ties and losses
    of the first, Holm-adjusted Wilcoxon p, and the median difference (negative: the first leaves less)."""
    both: list[tuple[str, str, np.ndarray, np.ndarray]] = []
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            shared = ~np.isnan(scores[:, [i, j]]).any(1)
            if shared.sum() > 1:
                both.append((names[i], names[j], scores[shared, i], scores[shared, j]))
    adjusted = holm(np.array([wilcoxon_p(a, b) for _, _, a, b in both]))
    return [
        {
            "first": first,
            "second": second,
            "win": int((a < b - tie).sum()),
            "tie": int((np.abs(a - b) <= tie).sum()),
            "loss": int((a > b + tie).sum()),
            "median_difference": float(np.median(a - b)),
            "p": float(p),
        }
        for (first, second, a, b), p in zip(both, adjusted, strict=True)
    ]
