"""Random plans within the budget."""

from __future__ import annotations

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.space.memory import MemoryModel
from qra_search.space.space import Plan
from qra_search.strategies.base import Strategy

ATTEMPTS = 200


class RandomStrategy(Strategy):
    """Plans drawn uniformly, then brought under one of the budgets (the largest, where that one is used up) by
    random downward steps."""

    name = "random"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        seen = set(state.seen)
        for k in range(n):
            rng = state.rng(k)
            budget = state.budgets[(len(state.trials) + k) % len(state.budgets)]
            for attempt in range(ATTEMPTS):
                plan = random_plan(state, rng, budget if attempt < ATTEMPTS // 2 else state.memory_limit)
                if plan.key not in seen:
                    seen.add(plan.key)
                    proposals.append(Proposal(plan, seed=state.seed, origin="random"))
                    break
        return proposals


def random_plan(state: StudyState, rng: np.random.Generator, budget: int) -> Plan:
    """A random plan of at most `budget` bytes."""
    space = state.space
    levels = [
        np.array([rng.choice(np.flatnonzero(row)) for row in mask])
        for mask in (space.bits_allowed, space.ranks_allowed)
    ]
    return space.decode(*repair(space.memory, levels[0], levels[1], budget, rng))


def repair(
    memory: MemoryModel, b: np.ndarray, r: np.ndarray, budget: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Level indices (G,), (G,) brought under `budget` by one random choice at a time going to the next smaller.

    Raises:
        BudgetTooSmall: no plan fits.
    """
    memory.check_budget(budget)
    b, r = b.copy(), r.copy()
    tables = (memory.weight, memory.adapter)
    allowed = (memory.bits_allowed, memory.ranks_allowed)
    total = int(memory.bytes(b, r))
    order = iter(())
    while total > budget:
        move = next(order, None)
        if move is None:
            order = iter(rng.permutation(2 * len(b)))
            continue
        which, g = divmod(int(move), len(b))
        level = (b, r)[which]
        smaller = np.flatnonzero(allowed[which][g] & (tables[which][g] < tables[which][g, level[g]]))
        if len(smaller):
            new = smaller[tables[which][g, smaller].argmax()]
            total += int(tables[which][g, new] - tables[which][g, level[g]])
            level[g] = new
    return b, r
