"""Steps of plans to adjacent choices: neighbours, random plans, and random steps down to a budget."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qra_search.space.space import SearchSpace


@dataclass(frozen=True)
class AdjacentSteps:
    """Steps of encoded plans, int (2, G): each of the 2 G variables to the next smaller or larger allowed choice.

    K is the larger number of choices, of bits and of ranks.
    """

    space: SearchSpace

    @cached_property
    def allowed(self) -> np.ndarray:
        """bool (2, G, K): which choices each variable may take."""
        return _stack_choices(self.space.bits_allowed, self.space.ranks_allowed, False)

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 (2, G, K): bytes of each choice of each variable."""
        return _stack_choices(self.space.memory.weight, self.space.memory.adapter, 0)

    @cached_property
    def smallest(self) -> np.ndarray:
        """int (2, G): the code of fewest bytes."""
        return np.asarray(np.where(self.allowed, self.sizes, np.iinfo(np.int64).max).argmin(-1))

    def decrease_choices(self, code: np.ndarray) -> np.ndarray:
        """int (2, G): every variable at its next smaller allowed choice, or where it is if there is none."""
        return select_entries(self._next_smaller, code)

    def increase_choices(self, code: np.ndarray) -> np.ndarray:
        """int (2, G): every variable at its next larger allowed choice, or where it is if there is none."""
        return select_entries(self._next_larger, code)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """int (2, G): every variable drawn from its allowed choices, whatever the bytes."""
        flat = self.allowed.reshape(-1, self.allowed.shape[-1])
        return np.array([rng.choice(np.flatnonzero(row)) for row in flat]).reshape(2, -1)

    def repair(self, code: np.ndarray, budget: int, rng: np.random.Generator) -> np.ndarray:
        """int (2, G): the code brought within `budget` bytes: random variables, one at a time, go to the next smaller.

        Raises BudgetTooSmall if no plan fits.
        """
        self.space.memory.check_budget(budget)
        code, total = code.copy(), int(self.space.memory.bytes(code))
        order: Iterator[int] = iter(())
        while total > budget:
            v = next(order, None)
            if v is None:
                order = iter(rng.permutation(code.size))
                continue
            at = np.unravel_index(v, code.shape)
            sizes = self.sizes[at]
            now = self.sizes[at][code[at]]
            smaller = np.flatnonzero(self.allowed[at] & (sizes < now))
            if len(smaller):
                code[at] = smaller[sizes[smaller].argmax()]
                total += int(sizes[code[at]] - now)
        return code

    def list_neighbours(self, code: np.ndarray) -> np.ndarray:
        """int (M, 2, G): all codes that differ from this one by one step of one variable."""
        found = []
        for to in (self.decrease_choices(code), self.increase_choices(code)):
            side, group = np.nonzero(to != code)
            codes = np.tile(code, (len(side), 1, 1))
            codes[np.arange(len(side)), side, group] = to[side, group]
            found.append(codes)
        return np.concatenate(found)

    @cached_property
    def _next_smaller(self) -> np.ndarray:
        return _find_previous_allowed(self.allowed)

    @cached_property
    def _next_larger(self) -> np.ndarray:
        return np.asarray(
            self.allowed.shape[-1] - 1 - _find_previous_allowed(self.allowed[..., ::-1])[..., ::-1]
        )


def select_entries(values: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(..., 2, G): the entries of values (2, G, K) at the choices of codes (..., 2, G)."""
    side, group = np.indices(values.shape[:2])
    return np.asarray(values[side, group, codes])


def exclude_known(codes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The codes (M, 2, G) in order, each once, without those that are among the known (N, 2, G)."""
    places = {code.tobytes(): i for i, code in enumerate(codes)}  # in the order of the first of equal codes
    seen = {code.tobytes() for code in known}
    return codes[[i for key, i in places.items() if key not in seen]]


def _stack_choices(bits: np.ndarray, ranks: np.ndarray, fill: float) -> np.ndarray:
    width = max(bits.shape[1], ranks.shape[1])
    return np.stack(
        [np.pad(t, ((0, 0), (0, width - t.shape[1])), constant_values=fill) for t in (bits, ranks)]
    )


def _find_previous_allowed(allowed: np.ndarray) -> np.ndarray:
    """int (..., K): the last allowed choice before each; the choice itself if there is none."""
    values = np.arange(allowed.shape[-1])
    last = np.maximum.accumulate(np.where(allowed, values, -1), axis=-1)
    before = np.concatenate([np.full_like(last[..., :1], -1), last[..., :-1]], axis=-1)
    return np.where(before >= 0, before, values)
