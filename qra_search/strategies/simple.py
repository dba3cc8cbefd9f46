"""Strategies without a model: every uniform plan, or random plans; and plans that the log does not hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal
from qra_search.space.steps import AdjacentSteps
from qra_search.strategies import Strategy

MAX_DRAWS = 100
"""Draws for one proposal, and as many of random plans under the largest budget before the list ends."""


class UniformStrategy(Strategy):
    """Every uniform plan that fits the budget, largest first."""

    name = "uniform"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        plans = [p for p in reversed(state.space.uniform_plans(state.largest_budget)) if p not in state.seen]
        return [Proposal(plan, seed=state.seed, origin="uniform") for plan in plans[:n]]


class RandomStrategy(Strategy):
    """Random plans, brought under the budget by random steps down.

    Budgets take turns; once one has nothing new, the largest is taken.
    """

    name = "random"
    searches_extra = True

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        def draw(offset: int, rng: np.random.Generator) -> tuple[Plan, str]:
            return sample_plan(state, rng, rotate_budgets(state, offset)[0]), "random"

        return propose_new(state, n, draw)


def propose_new(
    state: StudyState,
    n: int,
    draw: Callable[[int, np.random.Generator], tuple[Plan, str]],
    *,
    fidelity: float = 1.0,
) -> list[Proposal]:
    """At most `n` proposals of plans that the log does not hold.

    Args:
        draw: from the offset of the proposal and its generator, a plan and its origin. It is called again while the
            plan is known; then random plans take its place.
    """
    seen = set(state.seen)
    proposals: list[Proposal] = []
    for offset in range(n):
        rng = state.rng(offset)
        for attempt in range(2 * MAX_DRAWS):
            plan, origin = (
                draw(offset, rng)
                if attempt < MAX_DRAWS
                else (sample_plan(state, rng, state.largest_budget), "random")
            )
            if plan not in seen:
                seen.add(plan)
                proposals.append(Proposal(plan, fidelity=fidelity, seed=state.seed, origin=origin))
                break
    return proposals


def sample_plan(state: StudyState, rng: np.random.Generator, budget: int) -> Plan:
    steps = AdjacentSteps(state.space)
    return state.space.decode(steps.repair(steps.sample(rng), budget, rng))


def rotate_budgets(state: StudyState, offset: int = 0) -> tuple[int, ...]:
    """All budgets, beginning with the one whose turn it is by the number of the proposal."""
    start = (len(state.trials) + offset) % len(state.budgets)
    return state.budgets[start:] + state.budgets[:start]
