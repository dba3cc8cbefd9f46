"""The multiple-choice knapsack: the best plan under a budget when groups do not interact, solved exactly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BISECTIONS = 60
BATCH_BISECTIONS = 24
MAX_SUMS = 12_000_000
"""Partial sums of all groups together, 6 bytes each. A measured prior of 6,000 experts needs half as many; only
thousands of groups that are all alike need more, and there the greedy solution is but a single exchange off."""
RELATIVE_GAP = 1e-12
"""Solutions closer to the optimum than this share of the costs' span count as optimal (float rounding)."""


class Solution(NamedTuple):
    """A plan, int64 (2, G), and whether it is known to be optimal."""

    code: np.ndarray
    is_exact: bool


def solve(cost: np.ndarray, size: np.ndarray, budget: int, *, exact: bool = True) -> Solution | None:
    """The plan of least cost within a budget.

    A Lagrangian bound and a greedy solution come first; partial sums are then extended group by group, and
    dropped when another is no dearer and no larger, or when the bound shows that no completion beats the best
    solution known (Nemhauser and Ullmann 1969; Pisinger 1995). Exact for any sizes, there is no quantum, unless more
    than `MAX_SUMS` partial sums would be kept: the greedy solution is then as good as known.

    Args:
        cost: float (G, B, R); inf if a choice is not allowed.
        size: int (G, B, R), not negative.
        budget: what the sizes may sum to.
        exact: if not, only the Lagrangian and greedy steps are taken: optimal but for the last few choices.

    Returns:
        None if nothing fits.
    """
    ranks = cost.shape[-1]
    cost = flatten_choices(np.asarray(cost, float))
    size = flatten_choices(np.asarray(size, np.int64))
    rows = np.arange(len(cost))
    allowed = np.isfinite(cost)
    smallest = np.where(allowed, size, np.iinfo(np.int64).max).argmin(1)
    if not allowed.any(1).all() or size[rows, smallest].sum() > budget:
        return None
    price, best, bound = _bisect(cost, size, budget, smallest)
    best = fill_budget(cost, size, budget, best)
    upper = float(cost[rows, best].sum())
    slack = RELATIVE_GAP * max(1.0, float(np.abs(cost[allowed]).sum()))
    is_exact = upper - bound <= slack
    if exact and not is_exact:
        best, is_exact = _search_exactly(cost, size, budget, price, best, upper, slack)
    return Solution(decode_items(best, ranks), bool(is_exact))


def solve_many(cost: np.ndarray, size: np.ndarray, budget: int) -> np.ndarray:
    """Plans int64 (S, 2, G) of nearly least cost for many tables: the Lagrangian solution of each, filled greedily.

    Args:
        cost: float (S, G, B, R); inf if a choice is not allowed.
        size: int (G, B, R).
        budget: what the sizes may sum to; the smallest choices must fit.
    """
    ranks = cost.shape[-1]
    cost = flatten_choices(cost)
    size = flatten_choices(size)
    S, G, _ = cost.shape
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
        weight = size.astype(float)
        priced = np.empty_like(c)
        for _ in range(BATCH_BISECTIONS):
            middle = 0.5 * (low + high)
            np.multiply(np.exp(middle)[:, None, None], weight, out=priced)
            priced += c
            choice = priced.argmin(2)
            ok = size[rows, choice].sum(1) <= budget
            best[todo[ok]] = choice[ok]
            high, low = np.where(ok, middle, high), np.where(ok, low, middle)
    return decode_items(np.stack([fill_budget(cost[s], size, budget, best[s]) for s in range(S)]), ranks)


def flatten_choices(table: np.ndarray) -> np.ndarray:
    """(..., G, C): a table (..., G, B, R) with the C = B R choices of a group as its items."""
    return table.reshape(*table.shape[:-2], -1)


def decode_items(items: np.ndarray, ranks: int) -> np.ndarray:
    """int64 (..., 2, G): the codes of plans given by one item of each group, (..., G)."""
    return np.stack(np.divmod(items, ranks), axis=-2)


def fill_budget(cost: np.ndarray, size: np.ndarray, budget: int, choice: np.ndarray) -> np.ndarray:
    """Items (G,) after single exchanges of items within the budget, each the best fall of cost a byte, while any helps.

    Args:
        cost, size: (G, C).
    """
    rows = np.arange(len(cost))
    choice = choice.copy()
    while True:
        gain = cost[rows, choice][:, None] - cost
        extra = size - size[rows, choice][:, None]
        usable = (gain > 0) & (extra <= budget - size[rows, choice].sum())
        rate = np.where(usable, gain / np.maximum(extra, 1), -1.0)
        group, item = np.unravel_index(rate.argmax(), rate.shape)
        if rate[group, item] < 0:
            return choice
        choice[group] = item


def _bisect(
    cost: np.ndarray, size: np.ndarray, budget: int, smallest: np.ndarray
) -> tuple[float, np.ndarray, float]:
    """Price of a byte, the best feasible choice met, and a lower bound of the optimum, by bisection."""
    rows = np.arange(len(cost))

    def choose_by_price(price: float) -> tuple[np.ndarray, int, float]:
        priced = cost + price * size
        choice = np.where(priced == priced.min(1, keepdims=True), size, np.inf).argmin(
            1
        )  # of equals the smallest
        return choice, int(size[rows, choice].sum()), float(priced[rows, choice].sum()) - price * budget

    choice, total, bound = choose_by_price(0.0)
    if total <= budget:
        return 0.0, choice, bound
    finite = cost[np.isfinite(cost)]
    low = 0.0
    high = float(finite.max() - finite.min()) + 1e-300
    best = smallest
    best_price = high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2 if low > 0 else high / 4
        choice, total, value = choose_by_price(middle)
        if value > bound:
            bound = value
            best_price = middle
        if total <= budget:
            high = middle
            if cost[rows, choice].sum() < cost[rows, best].sum():
                best = choice
            if total == budget:
                break
        else:
            low = middle
        if low > 0 and high - low <= 1e-13 * high:
            break
    return best_price, best, bound


def _search_exactly(
    cost: np.ndarray,
    size: np.ndarray,
    budget: int,
    price: float,
    best: np.ndarray,
    upper: float,
    slack: float,
) -> tuple[np.ndarray, bool]:
    """Exact search over partial sums, each bounded by the Lagrangian of what is still to be chosen; the best choice,
    and whether the search came to its end."""
    priced = cost + price * size
    least = priced.min(1)
    bound = float(least.sum()) - price * budget
    keep = np.isfinite(cost) & (bound + (priced - least[:, None]) <= upper + slack)
    # Groups with the fewest open items first: the list of partial sums stays short for longest.
    order = np.argsort(keep.sum(1), kind="stable")
    rest_least = np.append(least[order][::-1].cumsum()[::-1], 0.0)
    rest_small = np.append(np.where(keep, size, np.iinfo(np.int64).max).min(1)[order][::-1].cumsum()[::-1], 0)
    sums = np.zeros(1)
    sizes = np.zeros(1, np.int64)
    trace: list[tuple[np.ndarray, np.ndarray]] = []
    left = MAX_SUMS
    for position, g in enumerate(order):
        items = np.flatnonzero(keep[g])
        total = (sums[:, None] + cost[g, items]).ravel()
        taken = (sizes[:, None] + size[g, items]).ravel()
        floor = total + price * (taken - budget) + rest_least[position + 1]
        alive = np.flatnonzero((floor < upper - slack) & (taken + rest_small[position + 1] <= budget))
        if not len(alive):
            return best, True
        alive = alive[np.lexsort((total[alive], taken[alive]))]
        running = np.minimum.accumulate(total[alive])
        alive = alive[np.append(True, running[1:] < running[:-1])]
        trace.append(((alive // len(items)).astype(np.int32), items[alive % len(items)].astype(np.int16)))
        left -= len(alive)
        if left < 0:
            return best, False
        sums = total[alive]
        sizes = taken[alive]
    at = int(sums.argmin())
    if sums[at] >= upper:
        return best, True
    choice = np.empty(len(cost), dtype=np.int64)
    for position in range(len(order) - 1, -1, -1):
        parent, item = trace[position]
        choice[order[position]] = item[at]
        at = int(parent[at])
    return choice, True
