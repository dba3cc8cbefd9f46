"""95% intervals over rows and seeds: of a share, of a mean, and of one loss as a share of another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float]
Z_95 = 1.96
"""Standard errors on either side that hold 95%."""
CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 2000
MIN_ROWS = 8
"""Fewer rows say nothing about others of their kind."""


def bootstrap_log_ratio(nats: Sequence[float], other_nats: Sequence[float]) -> Interval | None:
    """Interval of the logarithm of the ratio of two losses, by paired bootstrap over rows (Efron 1979).

    The same each time.

    Args:
        nats, other_nats: summed losses (N,) of the same rows; those of the same labels, so that tokens cancel.

    Returns:
        None with fewer than `MIN_ROWS` rows, a loss that is not positive, or too few rows that have any.
    """
    one, two = np.asarray(nats, dtype=float), np.asarray(other_nats, dtype=float)
    if len(one) < MIN_ROWS or len(one) != len(two) or min(one.sum(), two.sum()) <= 0:
        return None
    rng = np.random.default_rng(0)
    ratios = np.empty((BOOTSTRAP_RESAMPLES // 100, 100))
    for some in ratios:
        rows = rng.integers(len(one), size=(len(some), len(one)))
        with np.errstate(divide="ignore", invalid="ignore"):
            some[:] = one[rows].sum(1) / two[rows].sum(1)
    low, high = np.quantile(ratios, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return (math.log(low), math.log(high)) if low > 0 and math.isfinite(high) else None


def compute_share_interval(share: float, rows: int) -> Interval:
    """Interval of a share of independent rows (Wilson 1927), which holds near 0 and 1 as well.

    >>> tuple(round(x, 3) for x in compute_share_interval(0.5, 64))
    (0.381, 0.619)
    >>> tuple(round(x, 3) for x in compute_share_interval(0.0, 20))
    (0.0, 0.161)
    """
    z = Z_95
    width = 1 + z * z / rows
    middle = (share + z * z / (2 * rows)) / width
    half = z / width * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def compute_score_interval(scores: Sequence[float]) -> Interval | None:
    """Interval of a mean score over independent rows, within 0 and 1 if all scores are; None with fewer than
    `MIN_ROWS`.

    Scores between 0 and 1 vary at most as much as a share of rows with the same mean.
    """
    if len(scores) >= MIN_ROWS and min(scores) >= 0 and max(scores) <= 1:
        return compute_share_interval(float(np.mean(scores)), len(scores))
    return compute_mean_interval(scores)


def compute_mean_interval(values: Sequence[float]) -> Interval | None:
    """Interval of a mean over independent rows, such as of differences; None with fewer than `MIN_ROWS`."""
    if len(values) < MIN_ROWS:
        return None
    mean, half = float(np.mean(values)), Z_95 * compute_standard_error(values)
    return mean - half, mean + half


def compute_seeds_half_width(*sides: Sequence[float]) -> float:
    """Half the width of the interval of a mean, or of a difference of two, by the spread over seeds (Student 1908),
    which is taken to be the same on both sides; nan if every side has a single seed.

    Two seeds say little about their spread: with two on either side the interval is twice as wide as with many.
    """
    from scipy.special import stdtrit  # a tenth of a second, which a refused command does without

    values = [np.asarray(side, dtype=float) for side in sides]
    freedom = sum(map(len, values)) - len(values)
    if freedom < 1:
        return math.nan
    variance = sum(float(((side - side.mean()) ** 2).sum()) for side in values) / freedom
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(
        variance * sum(1 / len(side) for side in values)
    )


def widen_by_seeds(interval: Interval, middle: float, half: float) -> Interval:
    """An interval over rows, widened on both sides of its middle by half the width of that over seeds; with nan, of a
    single seed, as it is."""
    low, high = interval
    if not math.isfinite(half):
        return interval
    return middle - math.hypot(middle - low, half), middle + math.hypot(high - middle, half)


def compute_standard_error(values: Sequence[float]) -> float:
    """Standard error of a mean; nan for a single value."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
