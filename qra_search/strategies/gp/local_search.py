"""Where an acquisition over plans is largest: local search by single steps and swaps, from good starting points."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from qra_search.log.state import StudyState
from qra_search.space import knapsack
from qra_search.space.space import Plan, SearchSpace
from qra_search.strategies.additive import additive_plan
from qra_search.strategies.evolution.edits import PlanCodec
from qra_search.surrogates.prior_table import prior_table

Score = Callable[[np.ndarray], np.ndarray]
"""Rows (M, 2 G) to their acquisition (M,); -inf is never chosen."""

SEARCH_STEPS = 60
SWAPS = 32
NEIGHBOURS = 256
"""Single steps of a row that one move of the search looks at; a random choice of them if there are more."""
BATCH = 20_000
PERTURBATION = 0.5
"""Log-deviation of the tables that further additive solutions are drawn from."""


class LocalSearch:
    """Finds the plans with the largest score among those within a limit that are not known yet.

    Args:
        seen: keys of the plans that may not be proposed.
        limit: bytes that no candidate may exceed.
    """

    def __init__(self, levels: PlanCodec, score: Score, seen: Iterable[str], limit: int):
        self.levels, self.score, self.limit = levels, score, limit
        width = levels.variables
        known = [levels.encode([Plan.from_key(k)]) for k in seen]
        self._known = {row.tobytes() for row in np.concatenate([np.zeros((0, width), np.int64), *known])}

    def best(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that may be proposed, each once, best first, with their scores."""
        rows = np.unique(rows.astype(np.int64), axis=0)
        rows = rows[self.levels.bytes(rows) <= self.limit]
        rows = rows[[row.tobytes() not in self._known for row in rows]] if len(rows) else rows
        values = np.concatenate([self.score(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)] or [np.zeros(0)])
        order = np.argsort(-values, kind="stable")
        order = order[np.isfinite(values[order])]
        return rows[order], values[order]

    def climb(self, rows: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Best-improvement local search from every row at once; returns the ends, best first, with their scores."""
        current, values = self.best(rows)
        ends: list[tuple[np.ndarray, float]] = []
        for _ in range(SEARCH_STEPS):
            if not len(current):
                break
            blocks = [np.concatenate([self._steps(r, rng), self.levels.swaps(r, SWAPS, rng)]) for r in current]
            found, scores = self.best(np.concatenate(blocks))
            lookup = {row.tobytes(): i for i, row in enumerate(found)}
            moved: dict[bytes, tuple[np.ndarray, float]] = {}
            for row, value, block in zip(current, values, blocks, strict=True):
                ranked = min((lookup.get(b.tobytes(), len(found)) for b in block), default=len(found))
                if ranked < len(found) and scores[ranked] > value:
                    moved[found[ranked].tobytes()] = (found[ranked], float(scores[ranked]))
                else:
                    ends.append((row, float(value)))
            current = np.array([row for row, _ in moved.values()]).reshape(-1, self.levels.variables)
            values = np.array([value for _, value in moved.values()])
        ends += list(zip(current, values, strict=True))
        ends.sort(key=lambda end: -end[1])
        return np.array([e[0] for e in ends]).reshape(-1, self.levels.variables), np.array([e[1] for e in ends])

    def _steps(self, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        steps = self.levels.neighbours(row)
        return steps if len(steps) <= NEIGHBOURS else steps[rng.choice(len(steps), NEIGHBOURS, replace=False)]


def around(levels: PlanCodec, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int (M, 2 G): the adjacent steps and some memory-neutral swaps of every row."""
    blocks = [np.concatenate([levels.neighbours(row), levels.swaps(row, 2 * SWAPS, rng)]) for row in rows]
    return np.concatenate([np.zeros((0, levels.variables), np.int64), *blocks])


def additive_rows(state: StudyState, budgets: Iterable[int], draws: int, rng: np.random.Generator) -> np.ndarray:
    """int (M, 2 G): additive optima of the prior at some budgets, and of tables perturbed group by group."""
    levels, table = PlanCodec(state.space), prior_table(state.space, state.sensitivities)
    budgets = list(budgets)
    plans = [additive_plan(state.space, table, b) for b in budgets]
    for i in range(draws):
        noisy = table * np.exp(PERTURBATION * rng.standard_normal((len(table), 1, 1)))
        plans.append(additive_plan(state.space, noisy, budgets[i % len(budgets)]))
    return levels.encode([p for p in plans if p is not None])


def linearized_row(
    space: SearchSpace, predict: Callable[[np.ndarray], np.ndarray], row: np.ndarray, budget: int
) -> np.ndarray | None:
    """int (2 G,): best plan under a budget if the model's mean were additive around a row; None if none fits.

    Args:
        predict: rows (M, 2 G) to their predicted losses (M,).
    """
    groups, B, R = len(space), len(space.bits), len(space.ranks)
    rows = np.tile(row, (groups * B * R, 1))
    g, b, r = (axis.ravel() for axis in np.meshgrid(np.arange(groups), np.arange(B), np.arange(R), indexing="ij"))
    at = np.arange(len(rows))
    rows[at, g], rows[at, groups + g] = b, r
    cost = predict(rows).reshape(groups, B * R)
    cost = np.where(space.memory.allowed.reshape(groups, -1), cost - cost.min(1, keepdims=True), np.inf)
    choice = knapsack.solve(cost, space.memory.choice.reshape(groups, -1), budget - space.fixed_bytes, exact=False)
    return None if choice is None else np.concatenate([choice // R, choice % R])
