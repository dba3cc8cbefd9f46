"""A plan as one row of integers: the form that strategies calculate with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qra_search.space.space import Plan, SearchSpace


@dataclass(frozen=True)
class PlanCodec:
    """Codes a plan as a row of 2 G variables: the bits of every group, then the rank of every group.

    A variable's value is an index into `space.bits` or `space.ranks`; K is the larger number of choices. A step to the
    next smaller or larger allowed value is a step to the adjacent choice.
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
        """bool (2 G, K): which values each variable may take."""
        return self._stack(self.space.bits_allowed, self.space.ranks_allowed, False)

    @cached_property
    def bytes_of(self) -> np.ndarray:
        """int64 (2 G, K): bytes of each value of each variable."""
        return self._stack(self.space.memory.weight, self.space.memory.adapter, 0)

    @cached_property
    def below(self) -> np.ndarray:
        """int (2 G, K): the next smaller allowed value, or the value itself if there is none."""
        return _previous_allowed(self.allowed)

    @cached_property
    def above(self) -> np.ndarray:
        """int (2 G, K): the next larger allowed value, or the value itself if there is none."""
        return self.allowed.shape[1] - 1 - _previous_allowed(self.allowed[:, ::-1])[:, ::-1]

    def encode(self, plans: Sequence[Plan]) -> np.ndarray:
        """int (N, 2 G): rows of plans."""
        return np.concatenate(self.space.encode_many(plans), axis=1)

    def decode(self, row: np.ndarray) -> Plan:
        """The plan of one row (2 G,)."""
        return self.space.decode(row[: self.groups], row[self.groups :])

    def bytes(self, rows: np.ndarray) -> np.ndarray:
        """int64 (...,): exact bytes of rows (..., 2 G)."""
        return self.space.memory.bytes(rows[..., : self.groups], rows[..., self.groups :])

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """int (2 G,): every variable drawn from its allowed values, whatever the bytes."""
        return np.array([rng.choice(np.flatnonzero(row)) for row in self.allowed])

    def repair(self, row: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
        """int (2 G,): the row brought under `budget` bytes: random variables, one at a time, go to the next smaller.

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
        targets = [self.below[v, row], self.above[v, row]]
        variable = np.concatenate([v[to != row] for to in targets])
        rows = np.tile(row, (len(variable), 1))
        rows[np.arange(len(rows)), variable] = np.concatenate([to[to != row] for to in targets])
        return rows

    def _stack(self, bits: np.ndarray, ranks: np.ndarray, fill: float) -> np.ndarray:
        width = max(bits.shape[1], ranks.shape[1])
        return np.concatenate(
            [np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=fill) for t in (bits, ranks)]
        )


def _previous_allowed(allowed: np.ndarray) -> np.ndarray:
    """int (V, K): the last allowed value before each; the value itself if there is none."""
    values = np.arange(allowed.shape[1])
    last = np.maximum.accumulate(np.where(allowed, values, -1), axis=1)
    before = np.pad(last[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return np.where(before >= 0, before, values)
