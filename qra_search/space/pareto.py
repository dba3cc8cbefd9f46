"""The plans that no other beats in both loss and bytes."""

from __future__ import annotations

import numpy as np


def non_dominated(losses: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """int (M,): indices of the points that no other beats in both loss and bytes, cheapest first; O(N log N).

    Of equal points the first is kept.

    >>> non_dominated(np.array([3.0, 2.0, 2.5, 1.0]), np.array([10, 20, 20, 30])).tolist()
    [0, 1, 3]
    """
    order = np.lexsort((losses, sizes))
    best = np.minimum.accumulate(losses[order])
    return order[np.append(True, best[1:] < best[:-1])] if len(order) else order
