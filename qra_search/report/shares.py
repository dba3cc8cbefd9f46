"""Shares of rows, such as accuracy, with their intervals."""

from __future__ import annotations

import math

from qra_search.report.formatting import percent
from qra_search.runs.comparison import TestResult

Z = 1.96
"""Standard errors on either side that hold 95%."""
SHARES = ("accuracy", "accuracy_norm", "accuracy_bytes", "exact_match", "flexible_match")
"""Figures of tasks that are shares of rows."""


def share_interval(share: float, rows: int) -> tuple[float, float]:
    """Interval at 95% of a share of independent rows (Wilson 1927), which holds near 0 and 1 as well.

    >>> tuple(round(x, 3) for x in share_interval(0.5, 64))
    (0.381, 0.619)
    >>> tuple(round(x, 3) for x in share_interval(0.0, 20))
    (0.0, 0.161)
    """
    wide = 1 + Z * Z / rows
    middle = (share + Z * Z / (2 * rows)) / wide
    half = Z / wide * math.sqrt(share * (1 - share) / rows + Z * Z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)


def metric_text(tested: TestResult, name: str) -> str:
    """A figure of a tuned plan: a share of rows in percent with its interval, anything else as a number."""
    value = tested.metrics[name]
    if name not in SHARES or not 0 <= value <= 1:
        return f"{value:.4g}"
    if not tested.scored:
        return percent(value)
    low, high = share_interval(value, tested.scored)
    return f"{percent(value)} ({100 * low:.0f} to {100 * high:.0f})"
