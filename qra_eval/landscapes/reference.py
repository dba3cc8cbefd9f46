"""The best plans known of a landscape under a budget: exact where it is additive, refined by exchanges elsewhere."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qra_search.evaluation.evaluator import Evaluator
from qra_search.files import write_json
from qra_search.space import knapsack
from qra_search.space.space import Plan

RESTARTS = 4
KICK = 0.15
"""Share of the groups that a restart moves to another choice."""
RELINEARISATIONS = 8
PAIRS = 8_000
"""Two-exchanges tried in a step, those with the lowest sum of single changes first; all of them in small spaces."""
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
    """Best known plan under each budget, with its noise-free loss; `exact` where it is proven optimal."""

    budgets: tuple[int, ...]
    plans: tuple[Plan, ...]
    losses: tuple[float, ...]
    exact: bool


_MEMORY: dict[str, Reference] = {}


def reference_front(landscape: Truth, budgets: Sequence[int], *, cache: str | Path | None = None) -> Reference:
    """Best known plan under each budget (bytes).

    An additive landscape is one exact knapsack a budget. Any other: the knapsack over its table, re-linearised
    around its solution while that helps, then one- and two-exchange descent on the true loss from there, from the
    optima of the other budgets, and from random kicks, until nothing improves.

    Args:
        cache: folder where results are kept between processes; they are always kept within one.

    Raises:
        BudgetTooSmall: no plan fits a budget.
    """
    budgets = tuple(sorted(int(b) for b in budgets))
    key = _fingerprint(landscape, budgets)
    if key in _MEMORY:
        return _MEMORY[key]
    path = Path(cache) / f"{key}.json" if cache is not None else None
    if path is not None and path.is_file():
        _MEMORY[key] = _read(path)
        return _MEMORY[key]
    for budget in budgets:
        landscape.space.memory.check_budget(budget)
    found = _solve_all(landscape, budgets)
    _MEMORY[key] = found
    if path is not None:
        _write(path, found)
    return found


def _solve_all(landscape: Truth, budgets: tuple[int, ...]) -> Reference:
    space, memory = landscape.space, landscape.space.memory
    table = np.where(memory.allowed, landscape.additive_table(), np.inf).reshape(len(space), -1)
    size = memory.choice.reshape(len(space), -1)
    ranks = len(space.ranks)

    def loss(choices: np.ndarray) -> np.ndarray:
        step = max(1, CHUNK // len(space))
        parts = [choices[i : i + step] for i in range(0, len(choices), step)]
        return np.concatenate([landscape.true_losses(c // ranks, c % ranks) for c in parts])

    best: list[np.ndarray] = []
    for budget in budgets:
        room = budget - space.fixed_bytes
        start = knapsack.solve(table, size, room)
        assert start is not None  # the budget was checked
        best.append(start if landscape.is_additive else _refine(loss, table, size, room, start))
    if not landscape.is_additive:
        rng = np.random.default_rng(0)
        for i, budget in enumerate(budgets):
            room = budget - space.fixed_bytes
            for other in [*best, *(_kick(best[i], table, rng) for _ in range(RESTARTS))]:
                candidate = _refine(loss, table, size, room, _shrink(other, table, size, room))
                if loss(candidate[None])[0] < loss(best[i][None])[0]:
                    best[i] = candidate
    plans = tuple(space.decode(c // ranks, c % ranks) for c in best)
    return Reference(budgets, plans, tuple(float(loss(c[None])[0]) for c in best), landscape.is_additive)


def _refine(loss, table: np.ndarray, size: np.ndarray, room: int, start: np.ndarray) -> np.ndarray:
    """Solve the knapsack over single changes around the best plan so far, damped, then descend by exchanges."""
    best, value = start, float(loss(start[None])[0])
    for _ in range(RELINEARISATIONS):
        change = _single_changes(loss, table, best) - value
        improved = False
        for damping in (0.0, 0.5, 1.0):
            stay = np.zeros_like(change)
            stay[np.arange(len(best)), best] = -damping * np.abs(change[np.isfinite(change)]).mean()
            candidate = knapsack.solve(change + stay, size, room, exact=False)
            if candidate is not None and (new := float(loss(candidate[None])[0])) < value - 1e-12:
                best, value, improved = candidate, new, True
        if not improved:
            break
    return _descend(loss, table, size, room, best)


def _descend(loss, table: np.ndarray, size: np.ndarray, room: int, start: np.ndarray) -> np.ndarray:
    """Best single or double exchange within the budget, over and over, until none lowers the loss."""
    best, value = start.copy(), float(loss(start[None])[0])
    items = table.shape[1]
    rows = np.arange(len(table))
    while True:
        change = _single_changes(loss, table, best) - value
        change[rows, best] = np.inf
        left = room - int(size[rows, best].sum())
        extra = (size - size[rows, best][:, None]).ravel()
        usable = np.flatnonzero(np.isfinite(change.ravel()) & (extra <= left))
        singles = np.stack([usable, usable], axis=1)
        moves = np.concatenate([singles, _pairs(change.ravel(), extra, left, items)])
        if not len(moves):
            return best
        gain = loss(_moved(best, moves, items)) - value
        together = _together(moves, gain, extra, left, items)
        if not len(together):
            return best
        steps = np.repeat(best[None], len(together), axis=0)
        for i, move in enumerate(together):
            steps[i:, move // items] = move % items
        values = loss(steps)
        at = int(values.argmin())
        best, value = steps[at], float(values[at])


def _moved(choice: np.ndarray, moves: np.ndarray, items: int) -> np.ndarray:
    """Plans (M, G) after each of the moves (M, 2), given as group * items + item."""
    plans = np.repeat(choice[None], len(moves), axis=0)
    index = np.arange(len(moves))
    for column in (0, 1):
        plans[index, moves[:, column] // items] = moves[:, column] % items
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
    order = usable[np.argsort(change[usable], kind="stable")]
    if len(order) ** 2 > CHUNK:
        # The cheapest moves that free bytes, and those that gain most a byte, are what pairs are made of.
        rate = change[usable] / np.maximum(np.abs(extra[usable]), 1)
        frees = usable[extra[usable] <= 0]
        keep = np.concatenate([order[:700], usable[np.argsort(rate)][:600], frees[np.argsort(change[frees])][:700]])
        order = np.unique(keep)
    i, j = np.triu_indices(len(order), 1)
    i, j = order[i], order[j]
    fits = (extra[i] + extra[j] <= left) & (i // items != j // items)
    i, j = i[fits], j[fits]
    if len(i) > PAIRS:
        first = np.argpartition(change[i] + change[j], PAIRS)[:PAIRS]
        i, j = i[first], j[first]
    return np.stack([i, j], axis=1)


def _single_changes(loss, table: np.ndarray, choice: np.ndarray) -> np.ndarray:
    """Loss (G, C) with one group at another choice; inf if that is not allowed."""
    groups, items = table.shape
    plans = np.repeat(choice[None], groups * items, axis=0)
    index = np.arange(groups * items)
    plans[index, index // items] = index % items
    return np.where(np.isfinite(table), loss(plans).reshape(groups, items), np.inf)


def _kick(choice: np.ndarray, table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The plan with some of its groups at random choices."""
    kicked = choice.copy()
    for g in rng.choice(len(choice), max(1, round(KICK * len(choice))), replace=False):
        kicked[g] = rng.choice(np.flatnonzero(np.isfinite(table[g])))
    return kicked


def _shrink(choice: np.ndarray, table: np.ndarray, size: np.ndarray, room: int) -> np.ndarray:
    """The plan brought under the budget by the exchanges that cost least loss a byte."""
    rows = np.arange(len(choice))
    choice = choice.copy()
    while (over := int(size[rows, choice].sum()) - room) > 0:
        saved = size[rows, choice][:, None] - size
        rise = table - table[rows, choice][:, None]
        usable = (saved > 0) & np.isfinite(rise)
        rate = np.where(usable, np.maximum(rise, 0) / np.maximum(np.minimum(saved, over), 1), np.inf)
        g, c = divmod(int(rate.argmin()), table.shape[1])
        choice[g] = c
    return choice


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


def _read(path: Path) -> Reference:
    data = json.loads(path.read_text())
    plans = tuple(Plan.from_key(key) for key in data["plans"])
    return Reference(tuple(data["budgets"]), plans, tuple(data["losses"]), data["exact"])


def _write(path: Path, reference: Reference) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "budgets": list(reference.budgets),
        "plans": [plan.key for plan in reference.plans],
        "losses": list(reference.losses),
        "exact": reference.exact,
    }
    write_json(path, data)
