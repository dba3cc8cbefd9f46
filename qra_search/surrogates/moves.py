"""Candidate plans: knapsack optima of many tables at once, and neighbours of a plan."""

from __future__ import annotations

import numpy as np

from qra_search.allocate import knapsack

BISECTIONS = 24


def solve_many(cost: np.ndarray, size: np.ndarray, budget: int) -> np.ndarray:
    """Knapsack choices (S, G) for many tables (S, G, C): the Lagrangian solution of each, filled greedily.

    Args:
        size: int (G, C).
        budget: what the sizes may sum to; the smallest items must fit.
    """
    S, G, C = cost.shape
    allowed = np.isfinite(cost[0])
    least = np.where(allowed, size, np.iinfo(np.int64).max).argmin(1)
    best = np.repeat(least[None], S, 0)
    rows = np.arange(G)
    free = cost.argmin(2)
    fits = size[rows, free].sum(1) <= budget
    best[fits] = free[fits]
    todo = np.flatnonzero(~fits)
    if len(todo):
        c = cost[todo]
        span = np.where(allowed, c, -np.inf).max(2) - np.where(allowed, c, np.inf).min(2)
        width = np.maximum(np.where(allowed, size, 0).max(1) - size[rows, least], 1)
        # Prices span many decades: bisect on the logarithm.
        high = np.log((span / width).max(1) * G + 1e-300) + 5.0
        low = high - 40.0
        weight, priced = size.astype(float), np.empty_like(c)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            np.multiply(np.exp(middle)[:, None, None], weight, out=priced)
            priced += c
            choice = priced.argmin(2)
            ok = size[rows, choice].sum(1) <= budget
            best[todo[ok]] = choice[ok]
            high, low = np.where(ok, middle, high), np.where(ok, low, middle)
    return np.stack([knapsack.fill(cost[s], size, budget, best[s]) for s in range(S)])


def neighbours(plan: np.ndarray, mean: np.ndarray, size: np.ndarray, budget: int, count: int) -> np.ndarray:
    """Plans (M, G) one or two changes away from a plan, within the budget; the most promising by the mean table.

    Args:
        plan: int (G,), item of each group.
        mean: (G, C), the mean table; inf if not allowed.
    """
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
    return np.concatenate([out, pairs])


def distinct(choices: np.ndarray, known: set[bytes]) -> np.ndarray:
    """Rows (M, G) in order, each once, and none whose bytes are known."""
    seen = set(known)
    kept = []
    for i, row in enumerate(choices):
        key = row.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(i)
    return choices[kept]
