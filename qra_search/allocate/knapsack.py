"""The multiple-choice knapsack: the best plan under a budget when groups do not interact, solved exactly."""

from __future__ import annotations

import numpy as np

BISECTIONS = 60
MOST_SUMS = 12_000_000
"""Partial sums of all groups together, 6 bytes each. A measured prior of 6,000 experts needs half as many; only
thousands of groups that are all alike need more, and there the greedy solution is but a single exchange off."""
RELATIVE_GAP = 1e-12
"""Solutions closer to the optimum than this share of the costs' span count as optimal (float rounding)."""


def solve(cost: np.ndarray, size: np.ndarray, budget: int, *, exact: bool = True) -> np.ndarray | None:
    """Cheapest choice of one item for every group within a budget.

    A Lagrangian bound and a greedy solution come first; partial sums are then extended group by group, and
    dropped when another is no dearer and no larger, or when the bound shows that no completion beats the best
    solution known (Nemhauser and Ullmann 1969; Pisinger 1995). Exact for any sizes, there is no quantum, unless more
    than `MOST_SUMS` partial sums would be kept: the greedy solution is then as good as known.

    Args:
        cost: float (G, C); inf if an item is not allowed.
        size: int (G, C), not negative.
        budget: what the sizes may sum to.
        exact: if not, only the Lagrangian and greedy steps are taken: optimal but for the last few items.

    Returns:
        int (G,), the chosen items; None if nothing fits.
    """
    cost, size = np.asarray(cost, dtype=float), np.asarray(size, dtype=np.int64)
    rows = np.arange(len(cost))
    allowed = np.isfinite(cost)
    if not allowed.any(1).all():
        return None
    smallest = np.where(allowed, size, np.iinfo(np.int64).max).argmin(1)
    if size[rows, smallest].sum() > budget:
        return None
    price, best, bound = _lagrange(cost, size, budget, smallest)
    best = fill(cost, size, budget, best)
    if not exact:
        return best
    upper = float(cost[rows, best].sum())
    slack = RELATIVE_GAP * max(1.0, float(np.abs(cost[allowed]).sum()))
    if upper - bound <= slack:
        return best
    return _extend(cost, size, budget, price, best, upper, slack)


def fill(cost: np.ndarray, size: np.ndarray, budget: int, choice: np.ndarray) -> np.ndarray:
    """Spend what is left of the budget: single exchanges, each the best fall of cost a byte, while any helps."""
    rows = np.arange(len(cost))
    choice = choice.copy()
    room = budget - int(size[rows, choice].sum())
    gain = cost[rows, choice][:, None] - cost
    extra = size - size[rows, choice][:, None]
    item, rate = _best_exchange(gain, extra, room)
    while True:
        g = int(rate.argmax())
        if rate[g] < 0:
            return choice
        freed = -int(extra[g, item[g]])
        room += freed
        choice[g] = item[g]
        gain[g], extra[g] = cost[g, item[g]] - cost[g], size[g] - size[g, item[g]]
        # Less room takes from a group no exchange but those that no longer fit: its best one stays unless it is one.
        again = (extra[rows, item] > room) & (rate >= 0)
        again[g] = True
        again = rows if freed > 0 else np.flatnonzero(again)
        item[again], rate[again] = _best_exchange(gain[again], extra[again], room)


def _best_exchange(gain: np.ndarray, extra: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """The item (G,) of the best fall of cost a byte in each group, and that fall (G,); -1 if none helps and fits."""
    usable = (gain > 0) & (extra <= room)
    rate = np.where(usable, gain / np.maximum(extra, 1), -1.0)
    item = rate.argmax(1)
    return item, rate[np.arange(len(rate)), item]


def _lagrange(cost: np.ndarray, size: np.ndarray, budget: int, smallest: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Price of a byte, the best feasible choice met, and a lower bound of the optimum, by bisection."""
    rows = np.arange(len(cost))

    def at(price: float) -> tuple[np.ndarray, int, float]:
        priced = cost + price * size
        choice = priced.argmin(1)
        return choice, int(size[rows, choice].sum()), float(priced[rows, choice].sum()) - price * budget

    choice, total, bound = at(0.0)
    if total <= budget:
        return 0.0, choice, bound
    finite = cost[np.isfinite(cost)]
    low, high, best = 0.0, float(finite.max() - finite.min()) + 1e-300, smallest
    best_price = high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2 if low > 0 else high / 4
        choice, total, value = at(middle)
        if value > bound:
            bound, best_price = value, middle
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


def _extend(
    cost: np.ndarray,
    size: np.ndarray,
    budget: int,
    price: float,
    best: np.ndarray,
    upper: float,
    slack: float,
) -> np.ndarray:
    """Exact search over partial sums, each bounded by the Lagrangian of what is still to be chosen."""
    priced = cost + price * size
    least = priced.min(1)
    bound = float(least.sum()) - price * budget
    keep = np.isfinite(cost) & (bound + (priced - least[:, None]) <= upper + slack)
    # Groups with the fewest open items first: the list of partial sums stays short for longest.
    order = np.argsort(keep.sum(1), kind="stable")
    rest_least = np.append(least[order][::-1].cumsum()[::-1], 0.0)
    rest_small = np.append(np.where(keep, size, np.iinfo(np.int64).max).min(1)[order][::-1].cumsum()[::-1], 0)
    sums, sizes = np.zeros(1), np.zeros(1, np.int64)
    trace: list[tuple[np.ndarray, np.ndarray]] = []
    left = MOST_SUMS
    for position, g in enumerate(order):
        items = np.flatnonzero(keep[g])
        total = (sums[:, None] + cost[g, items]).ravel()
        taken = (sizes[:, None] + size[g, items]).ravel()
        floor = total + price * (taken - budget) + rest_least[position + 1]
        alive = np.flatnonzero((floor < upper - slack) & (taken + rest_small[position + 1] <= budget))
        if not len(alive):
            return best
        alive = alive[np.lexsort((total[alive], taken[alive]))]
        running = np.minimum.accumulate(total[alive])
        alive = alive[np.append(True, running[1:] < running[:-1])]
        trace.append(((alive // len(items)).astype(np.int32), items[alive % len(items)].astype(np.int16)))
        left -= len(alive)
        if left < 0:
            return best
        sums, sizes = total[alive], taken[alive]
    at = int(sums.argmin())
    if sums[at] >= upper:
        return best
    choice = np.empty(len(cost), dtype=np.int64)
    for position in range(len(order) - 1, -1, -1):
        parent, item = trace[position]
        choice[order[position]] = item[at]
        at = int(parent[at])
    return choice
