"""The best plans known of a landscape under a budget: exact where it is additive, refined by exchanges elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qra_eval.landscapes.families import LandscapeNumbers
from qra_search.allocate import knapsack
from qra_search.schemas import Plan
from qra_search.space.space import SearchSpace

RELINEARISATIONS = 8
MAX_PAIRS = 8_000
"""Two-exchanges tried in a step, those with the lowest sum of single changes first."""
MAX_SINGLES = 2_000
"""Single changes that pairs are made of, those of the lowest loss first."""
CHUNK = 4_000_000


@dataclass(frozen=True)
class ReferenceFront:
    """Best known plan under each budget, with its noise-free loss; `exact` where it is proven optimal."""

    plans: tuple[Plan, ...]
    losses: tuple[float, ...]
    exact: bool


def find_reference_front(
    tables: LandscapeNumbers, space: SearchSpace, budgets: Sequence[int]
) -> ReferenceFront:
    """Best known plan under each budget (bytes, ascending), by the noise-free loss; raises BudgetTooSmall.

    Additive tables are one exact knapsack a budget. Any other: the knapsack over its table, re-linearised
    around its solution while that helps, then one- and two-exchange descent on the true loss from there and from the
    optima of the other budgets, until nothing improves.
    """
    problems = []
    best = []
    for budget in budgets:
        space.memory.check_budget(budget)
        problem = BudgetProblem(tables, space, budget)
        start = knapsack.solve(problem.table, problem.size, problem.room)
        assert start is not None
        problems.append(problem)
        best.append(start.code if tables.is_additive else problem.refine(start.code))
    if not tables.is_additive:
        for i, problem in enumerate(problems):
            for other in list(best):
                candidate = problem.refine(problem.shrink_to_budget(other))
                if problem.compute_losses(candidate[None])[0] < problem.compute_losses(best[i][None])[0]:
                    best[i] = candidate
    losses = tuple(float(problems[0].compute_losses(code[None])[0]) for code in best)
    return ReferenceFront(tuple(map(space.decode, best)), losses, tables.is_additive)


class BudgetProblem:
    """A landscape under one budget; a move is one group at one choice, an index into (G, B, R)."""

    def __init__(self, tables: LandscapeNumbers, space: SearchSpace, budget: int):
        self.tables = tables
        memory = space.memory
        self.allowed = memory.allowed
        self.size = memory.choice_bytes
        self.table = np.where(memory.allowed, tables.build_additive_table(), np.inf)
        self.room = budget - memory.fixed
        self.group, self.level, self.rank = np.indices(self.size.shape).reshape(3, -1)

    def compute_losses(self, codes: np.ndarray) -> np.ndarray:
        """True losses (N,) of plans (N, 2, G)."""
        step = max(1, CHUNK // len(self.table))
        return np.concatenate(
            [self.tables.compute_losses(codes[i : i + step]) for i in range(0, len(codes), step)]
        )

    def refine(self, start: np.ndarray) -> np.ndarray:
        """Knapsacks over single changes around the best plan so far, damped, then descent by exchanges."""
        best, value = start, float(self.compute_losses(start[None])[0])
        for _ in range(RELINEARISATIONS):
            change = self.evaluate_single_changes(best) - value
            improved = False
            for damping in (0.0, 0.5, 1.0):
                stay = np.zeros_like(change)
                drawn_back = damping * np.abs(change[np.isfinite(change)]).mean()
                stay[np.arange(len(stay)), best[0], best[1]] = -drawn_back
                candidate = knapsack.solve(change + stay, self.size, self.room, exact=False)
                if candidate is None:
                    continue
                new = float(self.compute_losses(candidate.code[None])[0])
                if new < value - 1e-12:
                    best, value, improved = candidate.code, new, True
            if not improved:
                break
        return self.run_local_search(best)

    def run_local_search(self, start: np.ndarray) -> np.ndarray:
        """Single and double exchanges within the budget, over and over, until none lowers the loss."""
        best, value = start, float(self.compute_losses(start[None])[0])
        while True:
            change = self.evaluate_single_changes(best) - value
            change[np.arange(len(change)), best[0], best[1]] = np.inf
            sizes = pick_entries(self.size, best)
            left = self.room - int(sizes.sum())
            extra = (self.size - sizes[:, None, None]).ravel()
            usable = np.flatnonzero(np.isfinite(change.ravel()) & (extra <= left))
            singles = np.stack([usable, usable], axis=1)
            moves = np.concatenate([singles, self.list_pairs(change.ravel(), extra, left)])
            if not len(moves):
                return best
            codes = self.apply_moves(best, moves)
            values = self.compute_losses(codes)
            if values.min() >= value - 1e-12:
                return best
            best, value = codes[values.argmin()], float(values.min())

    def evaluate_single_changes(self, code: np.ndarray) -> np.ndarray:
        """Loss (G, B, R) with one group at another choice; inf if that is not allowed."""
        codes = self.apply_moves(code, np.arange(self.size.size)[:, None])
        return np.where(self.allowed, self.compute_losses(codes).reshape(self.size.shape), np.inf)

    def apply_moves(self, code: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Plans (M, 2, G) after each of the moves (M, k)."""
        codes = np.repeat(code[None], len(moves), axis=0)
        row = np.arange(len(moves))
        for column in moves.T:
            codes[row, 0, self.group[column]] = self.level[column]
            codes[row, 1, self.group[column]] = self.rank[column]
        return codes

    def shrink_to_budget(self, code: np.ndarray) -> np.ndarray:
        """The plan brought under the budget by the exchanges that cost least loss a byte."""
        while (over := int(pick_entries(self.size, code).sum()) - self.room) > 0:
            saved = pick_entries(self.size, code)[:, None, None] - self.size
            rise = self.table - pick_entries(self.table, code)[:, None, None]
            usable = (saved > 0) & np.isfinite(rise)
            rate = np.where(usable, np.maximum(rise, 0) / np.maximum(np.minimum(saved, over), 1), np.inf)
            code = self.apply_moves(code, np.array([[int(rate.argmin())]]))[0]
        return code

    def list_pairs(self, change: np.ndarray, extra: np.ndarray, left: int) -> np.ndarray:
        """Pairs of moves (P, 2) of different groups that fit together, lowest sum of single changes first."""
        usable = np.flatnonzero(np.isfinite(change))
        order = usable[np.argsort(change[usable], kind="stable")[:MAX_SINGLES]]
        i, j = np.triu_indices(len(order), 1)
        i, j = order[i], order[j]
        fits = (extra[i] + extra[j] <= left) & (self.group[i] != self.group[j])
        i, j = i[fits], j[fits]
        if len(i) > MAX_PAIRS:
            first = np.argpartition(change[i] + change[j], MAX_PAIRS)[:MAX_PAIRS]
            i, j = i[first], j[first]
        return np.stack([i, j], axis=1)


def pick_entries(table: np.ndarray, code: np.ndarray) -> np.ndarray:
    """(G,): the entries of a table (G, B, R) at a plan's choices."""
    return np.asarray(table[np.arange(len(table)), code[0], code[1]])
