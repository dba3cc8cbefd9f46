"""The best plans known of a landscape under a budget: exact where it is additive, refined by exchanges elsewhere."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from qra_search.allocate import knapsack
from qra_search.evaluation.evaluator import Evaluator
from qra_search.files import write_json
from qra_search.space.space import Plan

RESTARTS = 4
KICK = 0.15
"""Share of the groups that a restart moves to another choice."""
RELINEARISATIONS = 8
PAIRS = 8_000
"""Two-exchanges tried in a step, those with the lowest sum of single changes first."""
SINGLES = 2_000
"""Single changes that pairs are made of, those of the lowest loss first."""
PREFIX = 48
"""Improving exchanges of different groups that one step tries to make together."""
CHUNK = 4_000_000


class Truth(Evaluator):
    """An evaluator whose loss is known without noise."""

    is_additive: bool = False
    """Whether the true loss is exactly a sum over groups."""

    @abstractmethod
    def true_losses(self, b: np.ndarray, r: np.ndarray) -> np.ndarray:
        """Noise-free losses (N,) at full fidelity of level indices (N, G), (N, G)."""

    @abstractmethod
    def additive_table(self) -> np.ndarray:
        """float (G, B, R): each choice's own share of the loss; the whole of it if `is_additive`."""

    def true_loss(self, plan: Plan) -> float:
        """Noise-free loss at full fidelity."""
        b, r = self.space.encode(plan)
        return float(self.true_losses(b[None], r[None])[0])

    def reference_front(self, budgets: tuple[int, ...], cache: str | None = None) -> Reference:
        """The best plans known under these budgets, by their noise-free loss."""
        return reference_front(self, budgets, cache=cache)


@dataclass(frozen=True)
class Reference:
    """Best known plan (by its key) under each budget, with its noise-free loss; `exact` where it is proven optimal."""

    budgets: tuple[int, ...]
    keys: tuple[str, ...]
    losses: tuple[float, ...]
    exact: bool

    @property
    def plans(self) -> tuple[Plan, ...]:
        return tuple(Plan.from_key(key) for key in self.keys)


def reference_front(landscape: Truth, budgets: Sequence[int], *, cache: str | Path | None = None) -> Reference:
    """Best known plan under each budget (bytes).

    An additive landscape is one exact knapsack a budget. Any other: the knapsack over its table, re-linearised
    around its solution while that helps, then one- and two-exchange descent on the true loss from there, from the
    optima of the other budgets, and from random kicks, until nothing improves.

    Args:
        cache: folder where results are kept.

    Raises:
        BudgetTooSmall: no plan fits a budget.
    """
    budgets = tuple(sorted(int(b) for b in budgets))
    path = None if cache is None else Path(cache) / f"{_fingerprint(landscape, budgets)}.json"
    if path is not None and path.is_file():
        data = json.loads(path.read_text())
        return Reference(tuple(data["budgets"]), tuple(data["keys"]), tuple(data["losses"]), data["exact"])
    for budget in budgets:
        landscape.space.memory.check_budget(budget)
    found = _solve(landscape, budgets)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(found))
    return found


def _solve(landscape: Truth, budgets: tuple[int, ...]) -> Reference:
    space, memory = landscape.space, landscape.space.memory
    table = np.where(memory.allowed, landscape.additive_table(), np.inf).reshape(len(space), -1)
    size = memory.choice.reshape(len(space), -1)
    ranks = len(space.ranks)

    def loss(choices: np.ndarray) -> np.ndarray:
        step = max(1, CHUNK // len(space))
        parts = [choices[i : i + step] for i in range(0, len(choices), step)]
        return np.concatenate([landscape.true_losses(c // ranks, c % ranks) for c in parts])

    problems = [Problem(loss, table, size, budget - space.fixed_bytes) for budget in budgets]
    best = [problem.first(exact=landscape.is_additive) for problem in problems]
    if not landscape.is_additive:
        rng = np.random.default_rng(0)
        for i, problem in enumerate(problems):
            for other in [*best, *(problem.kicked(best[i], rng) for _ in range(RESTARTS))]:
                candidate = problem.refined(problem.shrunk(other))
                if problem.value(candidate) < problem.value(best[i]):
                    best[i] = candidate
    keys = tuple(space.decode(c // ranks, c % ranks).key for c in best)
    losses = tuple(problem.value(c) for problem, c in zip(problems, best, strict=True))
    return Reference(budgets, keys, losses, landscape.is_additive)


@dataclass(frozen=True)
class Problem:
    """A landscape under one budget; a plan is coded as int (G,), bits level times R plus rank level.

    Attributes:
        loss: true losses (N,) of plans (N, G).
        table: float (G, C), the additive part of the loss; inf where a choice is not allowed.
        size: int (G, C), bytes of each choice, of which a plan may take `room`.
    """

    loss: Callable[[np.ndarray], np.ndarray]
    table: np.ndarray
    size: np.ndarray
    room: int

    @cached_property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.table))

    def value(self, plan: np.ndarray) -> float:
        """The true loss of one plan."""
        return float(self.loss(plan[None])[0])

    def first(self, *, exact: bool) -> np.ndarray:
        """The knapsack over the table, refined unless it is exact; the budget was checked."""
        start = knapsack.solve(self.table, self.size, self.room)
        assert start is not None
        return start if exact else self.refined(start)

    def refined(self, start: np.ndarray) -> np.ndarray:
        """Knapsacks over single changes around the best plan so far, damped, then descent by exchanges."""
        best, value = start, self.value(start)
        for _ in range(RELINEARISATIONS):
            change = self.single_changes(best) - value
            improved = False
            for damping in (0.0, 0.5, 1.0):
                stay = np.zeros_like(change)
                stay[self.rows, best] = -damping * np.abs(change[np.isfinite(change)]).mean()
                candidate = knapsack.solve(change + stay, self.size, self.room, exact=False)
                if candidate is not None and (new := self.value(candidate)) < value - 1e-12:
                    best, value, improved = candidate, new, True
            if not improved:
                break
        return self.descended(best)

    def descended(self, start: np.ndarray) -> np.ndarray:
        """Single and double exchanges within the budget, over and over, until none lowers the loss."""
        best, value = start.copy(), self.value(start)
        items = self.table.shape[1]
        while True:
            change = self.single_changes(best) - value
            change[self.rows, best] = np.inf
            left = self.room - int(self.size[self.rows, best].sum())
            extra = (self.size - self.size[self.rows, best][:, None]).ravel()
            usable = np.flatnonzero(np.isfinite(change.ravel()) & (extra <= left))
            singles = np.stack([usable, usable], axis=1)
            moves = np.concatenate([singles, _pairs(change.ravel(), extra, left, items)])
            if not len(moves):
                return best
            gain = self.loss(_moved(best, moves, items)) - value
            together = _together(moves, gain, extra, left, items)
            if not len(together):
                return best
            steps = np.repeat(best[None], len(together), axis=0)
            for i, move in enumerate(together):
                steps[i:, move // items] = move % items
            values = self.loss(steps)
            at = int(values.argmin())
            best, value = steps[at], float(values[at])

    def single_changes(self, choice: np.ndarray) -> np.ndarray:
        """Loss (G, C) with one group at another choice; inf if that is not allowed."""
        groups, items = self.table.shape
        plans = np.repeat(choice[None], groups * items, axis=0)
        index = np.arange(groups * items)
        plans[index, index // items] = index % items
        return np.where(np.isfinite(self.table), self.loss(plans).reshape(groups, items), np.inf)

    def kicked(self, choice: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The plan with some of its groups at random choices."""
        kicked = choice.copy()
        for g in rng.choice(len(choice), max(1, round(KICK * len(choice))), replace=False):
            kicked[g] = rng.choice(np.flatnonzero(np.isfinite(self.table[g])))
        return kicked

    def shrunk(self, choice: np.ndarray) -> np.ndarray:
        """The plan brought under the budget by the exchanges that cost least loss a byte."""
        choice = choice.copy()
        while (over := int(self.size[self.rows, choice].sum()) - self.room) > 0:
            saved = self.size[self.rows, choice][:, None] - self.size
            rise = self.table - self.table[self.rows, choice][:, None]
            usable = (saved > 0) & np.isfinite(rise)
            rate = np.where(usable, np.maximum(rise, 0) / np.maximum(np.minimum(saved, over), 1), np.inf)
            g, c = divmod(int(rate.argmin()), self.table.shape[1])
            choice[g] = c
        return choice


def _moved(choice: np.ndarray, moves: np.ndarray, items: int) -> np.ndarray:
    """Plans (M, G) after each of the moves (M, 2), given as group * items + item."""
    plans = np.repeat(choice[None], len(moves), axis=0)
    for column in moves.T:
        plans[np.arange(len(moves)), column // items] = column % items
    return plans


def _together(moves: np.ndarray, gain: np.ndarray, extra: np.ndarray, left: int, items: int) -> np.ndarray:
    """Improving moves, best first, of groups that none before it touches, while all of them fit together."""
    chosen: list[np.ndarray] = []
    touched: set[int] = set()
    for at in np.argsort(gain, kind="stable"):
        if gain[at] >= -1e-12 or len(chosen) == PREFIX:
            break
        move = np.unique(moves[at])
        groups = set((move // items).tolist())
        cost = int(extra[move].sum())
        if cost <= left and not groups & touched:
            left -= cost
            touched |= groups
            chosen.append(moves[at])
    return np.array(chosen, dtype=np.int64).reshape(-1, 2)


def _pairs(change: np.ndarray, extra: np.ndarray, left: int, items: int) -> np.ndarray:
    """Pairs of moves (P, 2) of different groups that fit together, lowest sum of single changes first."""
    usable = np.flatnonzero(np.isfinite(change))
    order = usable[np.argsort(change[usable], kind="stable")[:SINGLES]]
    i, j = np.triu_indices(len(order), 1)
    i, j = order[i], order[j]
    fits = (extra[i] + extra[j] <= left) & (i // items != j // items)
    i, j = i[fits], j[fits]
    if len(i) > PAIRS:
        first = np.argpartition(change[i] + change[j], PAIRS)[:PAIRS]
        i, j = i[first], j[first]
    return np.stack([i, j], axis=1)


def _fingerprint(landscape: Truth, budgets: tuple[int, ...]) -> str:
    """Hash of the truth at some plans, of the space and of the budgets: equal landscapes share their reference."""
    space = landscape.space
    rng = np.random.default_rng(0)
    probes = [np.zeros((8, len(space)), np.int64) for _ in range(2)]
    for levels, allowed in zip(probes, (space.bits_allowed, space.ranks_allowed), strict=True):
        for g, row in enumerate(allowed):
            levels[:, g] = rng.choice(np.flatnonzero(row), 8)
    truth = np.round(landscape.true_losses(*probes), 9).tolist()
    content = json.dumps([space.signature, truth, landscape.is_additive, list(budgets)])
    return hashlib.sha256(content.encode()).hexdigest()[:20]
