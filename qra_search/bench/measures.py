"""What is read off a benchmark's rows: the share of the possible gain that is left, and hypervolume regret."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
FAILED_SHARE = 1.0
"""A cell that failed is scored as if the best uniform plan had been handed over."""


def best_known(rows: Sequence[Row]) -> dict[tuple[str, int], np.ndarray]:
    """Lowest noise-free loss known (B,) at each budget of the grid, for every (task, seed): the reference, or what
    any strategy handed over at any time if that is better."""
    best: dict[tuple[str, int], np.ndarray] = {}
    for row in rows:
        if "error" in row:
            continue
        key = (row["task"], row["seed"])
        known = np.array([row["reference"], *(look["handed"] for look in row["checkpoints"])]).min(0)
        best[key] = np.minimum(best.get(key, known), known)
    return best


def look_at(row: Row, point: float) -> Row | None:
    """The last look at or before a checkpoint; None if there is none (the cell failed)."""
    looks = [look for look in row.get("checkpoints", ()) if look["at"] <= point]
    return looks[-1] if looks else None


def share_left(row: Row, point: float, best: np.ndarray) -> float:
    """Share of the possible gain over the best uniform plan that is left, summed over the three budgets.

    0 is the best known plan at every budget, 1 the best uniform one; above 1 loses to uniform.
    """
    look = look_at(row, point)
    if look is None:
        return FAILED_SHARE
    at = [row["grid"].index(budget) for budget in row["budgets"]]
    left = np.array(look["handed"])[at] - best[at]
    possible = np.array(row["uniform"])[at] - best[at]
    return float(left.sum() / max(possible.sum(), 1e-12))


def hypervolume_regret(row: Row, point: float, best: np.ndarray) -> float:
    """1 - hypervolume of what is handed over at the grid's budgets / that of the best known plans there.

    Both by their noise-free losses (moocore). Reference point: the best uniform loss at the smallest budget, and the
    largest budget with a quarter of the grid's width added, so that the largest budget counts as well.
    """
    import moocore

    look = look_at(row, point)
    if look is None:
        return 1.0
    grid = np.array(row["grid"], dtype=float)
    corner = np.array([row["uniform"][0], grid[-1] + (grid[-1] - grid[0]) / 4])
    whole, found = (moocore.hypervolume(np.column_stack([x, grid]), ref=corner) for x in (best, look["handed"]))
    return float(1.0 - found / whole) if whole > 0 else 0.0


def scores(
    rows: Sequence[Row], point: float, best: dict[tuple[str, int], np.ndarray], names: Sequence[str], measure=share_left
) -> np.ndarray:
    """float (tasks, seeds, K): the measure of every strategy at a checkpoint; nan if a cell is missing.

    Tasks and seeds are those of the rows, in order.
    """
    tasks, seeds = sorted({row["task"] for row in rows}), sorted({row["seed"] for row in rows})
    table = np.full((len(tasks), len(seeds), len(names)), np.nan)
    for row in rows:
        if (key := (row["task"], row["seed"])) in best:
            place = tasks.index(row["task"]), seeds.index(row["seed"]), names.index(row["strategy"])
            table[place] = measure(row, point, best[key])
    return table
