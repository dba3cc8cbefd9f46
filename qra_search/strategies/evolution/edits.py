"""Plans as rows of integer levels, and the moves between them that the strategies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.space.space import Plan, SearchSpace

ATTEMPTS = 60
"""Draws for one proposal before a strategy falls back on random plans, and as many of those before it ends."""


@dataclass(frozen=True)
class PlanCodec:
    """A plan as one row of 2 G levels: the bits of every group, then the rank of every group.

    Variables v < G are bits, v >= G are ranks. Levels index `space.bits` and `space.ranks`, so that a step of
    one level up or down is a step to the adjacent choice.
    """

    space: SearchSpace

    @property
    def groups(self) -> int:
        return len(self.space)

    @property
    def variables(self) -> int:
        return 2 * len(self.space)

    @cached_property
    def allowed(self) -> np.ndarray:
        """bool (2 G, K): which levels each variable may take; K is the larger number of choices."""
        return self._stack(self.space.bits_allowed, self.space.ranks_allowed, False)

    @cached_property
    def bytes_of(self) -> np.ndarray:
        """int64 (2 G, K): bytes of each level of each variable."""
        return self._stack(self.space.memory.weight, self.space.memory.adapter, 0)

    @cached_property
    def values(self) -> np.ndarray:
        """float (2 G, K): the width or rank of each level of each variable; nan if it is not allowed."""
        widths, ranks = (np.tile(np.asarray(x, float), (self.groups, 1)) for x in (self.space.widths, self.space.ranks))
        return np.where(self.allowed, self._stack(widths, ranks, np.nan), np.nan)

    @cached_property
    def below(self) -> np.ndarray:
        """int (2 G, K): the next smaller allowed level, or the level itself if there is none."""
        return self._next_in(range(self.allowed.shape[1]))

    @cached_property
    def above(self) -> np.ndarray:
        """int (2 G, K): the next larger allowed level, or the level itself if there is none."""
        return self._next_in(reversed(range(self.allowed.shape[1])))

    # -- codec ---------------------------------------------------------------------------------
    def encode(self, plans: Sequence[Plan]) -> np.ndarray:
        """int (N, 2 G): rows of plans."""
        return np.concatenate(self.space.encode_many(plans), axis=1)

    def decode(self, row: np.ndarray) -> Plan:
        """The plan of one row (2 G,)."""
        return self.space.decode(row[: self.groups], row[self.groups :])

    def bytes(self, rows: np.ndarray) -> np.ndarray:
        """int64 (...,): exact bytes of rows (..., 2 G)."""
        return self.space.memory.bytes(rows[..., : self.groups], rows[..., self.groups :])

    # -- moves ---------------------------------------------------------------------------------
    def random(self, rng: np.random.Generator) -> np.ndarray:
        """int (2 G,): every variable drawn from its allowed levels, whatever the bytes."""
        return np.array([rng.choice(np.flatnonzero(row)) for row in self.allowed])

    def repair(self, row: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
        """int (2 G,): the row brought under `budget` bytes by one random variable at a time going to the next smaller.

        Raises:
            BudgetTooSmall: no plan fits.
        """
        self.space.memory.check_budget(budget)
        row, total = row.copy(), int(self.bytes(row))
        order: Iterator[int] = iter(())
        while total > budget:
            v = next(order, None)
            if v is None:
                order = iter(rng.permutation(self.variables))
                continue
            sizes, now = self.bytes_of[v], self.bytes_of[v, row[v]]
            smaller = np.flatnonzero(self.allowed[v] & (sizes < now))
            if len(smaller):
                row[v] = smaller[sizes[smaller].argmax()]
                total += int(sizes[row[v]] - now)
        return row

    def neighbours(self, row: np.ndarray) -> np.ndarray:
        """int (M, 2 G): all rows that differ from this one by one adjacent step of one variable."""
        v = np.arange(self.variables)
        steps = [(v, self.below[v, row]), (v, self.above[v, row])]
        variable = np.concatenate([v[to != row] for v, to in steps])
        target = np.concatenate([to[to != row] for _, to in steps])
        rows = np.tile(row, (len(variable), 1))
        rows[np.arange(len(rows)), variable] = target
        return rows

    def swaps(self, row: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """int (M, 2 G): at most `count` rows with one variable a step up and another a step down."""
        v = np.arange(self.variables)
        up, down = v[self.above[v, row] != row], v[self.below[v, row] != row]
        if not len(up) or not len(down):
            return np.zeros((0, self.variables), dtype=row.dtype)
        raised, lowered = rng.choice(up, count), rng.choice(down, count)
        keep = raised != lowered
        raised, lowered = raised[keep], lowered[keep]
        rows = np.tile(row, (len(raised), 1))
        rows[np.arange(len(rows)), raised] = self.above[raised, row[raised]]
        rows[np.arange(len(rows)), lowered] = self.below[lowered, row[lowered]]
        return rows

    def _next_in(self, order: Iterable[int]) -> np.ndarray:
        """int (2 G, K): the allowed level that comes before each one in this order."""
        steps = np.tile(np.arange(self.allowed.shape[1]), (self.variables, 1))
        last = np.full(self.variables, -1)
        for k in order:
            steps[:, k] = np.where(last >= 0, last, k)
            last = np.where(self.allowed[:, k], k, last)
        return steps

    def _stack(self, bits: np.ndarray, ranks: np.ndarray, fill: bool | float) -> np.ndarray:
        width = max(bits.shape[1], ranks.shape[1])
        padded = [np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=fill) for t in (bits, ranks)]
        return np.concatenate(padded)


def mutate(levels: PlanCodec, row: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """int (2 G,): the row with some variables one adjacent level up or down.

    Args:
        rate: chance of each variable; the first one is drawn outright, so that something changes.
    """
    v = np.arange(levels.variables)
    up, down = levels.above[v, row], levels.below[v, row]
    movable = (up != row) | (down != row)
    if not movable.any():
        return row.copy()
    chosen = rng.random(levels.variables) < rate
    chosen[rng.choice(levels.variables, p=movable / movable.sum())] = True
    upward = rng.random(levels.variables) < 0.5
    target = np.where(upward, np.where(up != row, up, down), np.where(down != row, down, up))
    return np.where(chosen, target, row)


def budget_in_turn(state: StudyState, offset: int = 0) -> int:
    """The named budgets in turn, by the number of the proposal; the largest plan's bytes where none is named."""
    if not state.memory_budgets:
        return state.memory_limit
    return state.memory_budgets[(len(state.trials) + offset) % len(state.memory_budgets)]


def one_by_one(state: StudyState, n: int, ask: Callable[[StudyState], Proposal | None]) -> list[Proposal]:
    """At most `n` proposals, each asked for as if the earlier ones were running trials already."""
    proposals: list[Proposal] = []
    while len(proposals) < n:
        proposal = ask(state)
        if proposal is None:
            break
        proposals.append(proposal)
        state = replace(state, trials=(*state.trials, Trial(len(state.trials), proposal)))
    return proposals


def fresh_plans(
    state: StudyState,
    n: int,
    draw: Callable[[int, np.random.Generator], tuple[np.ndarray, str] | None],
    *,
    fidelity: float = 1.0,
) -> list[Proposal]:
    """At most `n` proposals of plans that the log does not hold.

    Args:
        draw: from the offset of the proposal and its generator, a row (2 G,) and its origin; drawn again while
            the plan is known, then random plans within the budget take its place; None ends the list.
    """
    levels = PlanCodec(state.space)
    seen = set(state.seen)
    proposals: list[Proposal] = []
    for offset in range(n):
        rng = state.rng(offset)
        for attempt in range(2 * ATTEMPTS):
            if attempt < ATTEMPTS:
                drawn = draw(offset, rng)
                if drawn is None:
                    return proposals
                row, origin = drawn
            else:
                row, origin = levels.repair(levels.random(rng), budget_in_turn(state, offset), rng), "random"
            plan = levels.decode(row)
            if plan.key not in seen:
                seen.add(plan.key)
                proposals.append(Proposal(plan, fidelity=fidelity, seed=state.seed, origin=origin))
                break
    return proposals
