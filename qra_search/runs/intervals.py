"""Intervals of differences between test losses, from the rows that both plans were measured on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.95
DRAWS = 2000
LEAST_ROWS = 8
"""Fewer rows say nothing about others of their kind."""


def paired_interval(
    nats: Sequence[float], other_nats: Sequence[float], tokens: Sequence[int], *, draws: int = DRAWS
) -> tuple[float, float] | None:
    """Interval at 95% of the difference of two losses, in nats a token, by paired bootstrap over rows (Efron 1979).

    Args:
        nats, other_nats: summed loss of each row (N,) under the one plan and the other.
        tokens: labelled tokens of each row (N,), not all zero.
        draws: resamplings of the rows; they follow from no seed but 0, so that an interval can be made again.

    Returns:
        Lowest and highest difference, the one less the other; None with fewer than `LEAST_ROWS` rows.
    """
    change, weight = np.subtract(nats, other_nats), np.asarray(tokens, dtype=float)
    if len(change) < LEAST_ROWS:
        return None
    rng = np.random.default_rng(0)
    drawn = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(len(change), size=len(change))
        drawn[i] = change[rows].sum() / max(weight[rows].sum(), 1.0)
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return float(low), float(high)
