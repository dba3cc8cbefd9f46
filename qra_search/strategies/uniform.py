"""The baseline that users know: every uniform plan within the budget."""

from __future__ import annotations

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.strategies.base import Strategy


class UniformStrategy(Strategy):
    """Every uniform plan that fits, largest first (the largest is the one most likely to be wanted)."""

    name = "uniform"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        plans = [p for p in reversed(state.space.uniform_plans(state.memory_limit)) if p not in state.seen]
        return [Proposal(plan, seed=state.seed, origin="uniform") for plan in plans[:n]]
