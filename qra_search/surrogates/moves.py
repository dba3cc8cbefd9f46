"""Candidate plans: the neighbours of a plan within a budget."""

from __future__ import annotations

import numpy as np

from qra_search.allocate.knapsack import flat, to_codes


def neighbours(code: np.ndarray, mean: np.ndarray, size: np.ndarray, budget: int, count: int) -> np.ndarray:
    """Plans int64 (M, 2, G) one or two changes away from a plan (2, G), within the budget; the most promising by the
    mean table.

    Args:
        mean: float (G, B, R), the mean table; inf if a choice is not allowed.
        size: int (G, B, R), bytes of each choice.
        budget: what the sizes may sum to.
        count: of swaps; half as many single changes.
    """
    ranks, mean, size = mean.shape[-1], flat(mean), flat(size)
    plan = code[0] * ranks + code[1]
    G, C = mean.shape
    rows = np.arange(G)
    delta = mean - mean[rows, plan][:, None]
    extra = size - size[rows, plan][:, None]
    room = budget - int(size[rows, plan].sum())
    gain, cost = delta.ravel(), extra.ravel()
    ok = np.isfinite(gain)
    ok[rows * C + plan] = False
    single = np.flatnonzero(ok & (cost <= room))
    single = single[np.argsort(gain[single], kind="stable")[: count // 2]]
    out = np.repeat(plan[None], len(single), 0)
    out[np.arange(len(single)), single // C] = single % C
    # Pairs: one change that helps with one that pays for it.
    up = np.flatnonzero(ok & (gain < 0))
    up = up[np.argsort(gain[up] / np.maximum(cost[up], 1), kind="stable")[:60]]
    down = np.flatnonzero(ok & (cost < 0))
    down = down[np.argsort(-gain[down] / cost[down], kind="stable")[:60]]
    i, j = np.repeat(up, len(down)), np.tile(down, len(up))
    good = (cost[i] + cost[j] <= room) & (i // C != j // C)
    i, j = i[good], j[good]
    order = np.argsort(gain[i] + gain[j], kind="stable")[:count]
    i, j = i[order], j[order]
    pairs = np.repeat(plan[None], len(i), 0)
    pairs[np.arange(len(i)), i // C] = i % C
    pairs[np.arange(len(i)), j // C] = j % C
    return to_codes(np.concatenate([out, pairs]), ranks)
