"""Random plans within the budget."""

from __future__ import annotations

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.space.space import Plan
from qra_search.space.steps import Steps
from qra_search.strategies.base import Strategy

ATTEMPTS = 200


class RandomStrategy(Strategy):
    """Plans drawn uniformly, then brought under the budget in turn by random steps down; under the largest budget once
    nothing new is found under that one."""

    name = "random"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        proposals: list[Proposal] = []
        seen = set(state.seen)
        for k in range(n):
            rng = state.rng(k)
            budget = state.budgets[(len(state.trials) + k) % len(state.budgets)]
            for attempt in range(ATTEMPTS):
                plan = random_plan(state, rng, budget if attempt < ATTEMPTS // 2 else state.memory_limit)
                if plan not in seen:
                    seen.add(plan)
                    proposals.append(Proposal(plan, seed=state.seed, origin="random"))
                    break
        return proposals


def random_plan(state: StudyState, rng: np.random.Generator, budget: int) -> Plan:
    """A random plan of at most `budget` bytes."""
    steps = Steps(state.space)
    return state.space.decode(steps.repair(steps.random(rng), budget, rng))
