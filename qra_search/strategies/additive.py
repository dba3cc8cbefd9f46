"""Exact optima of the additive problem: of the sensitivities, then of the table that trials make of them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from qra_search.allocate.solve import build_additive_table, solve_table
from qra_search.log.state import StudyState
from qra_search.schemas import Proposal
from qra_search.strategies import Strategy
from qra_search.surrogates.posterior import compute_posterior_table

SWEEP_STEPS = 128
"""Steps from a named budget down to the smallest plan, and intervals of the finest grid where none is named."""
MIN_EVALUATIONS = 10


class AdditiveStrategy(Strategy):
    """The best plans by the sensitivities alone: a multiple-choice knapsack at each of several budgets.

    First the named budgets; then a little under each of them, further and further. Without named budgets, ever finer
    grids between the smallest and the largest plan. Once `MIN_EVALUATIONS` plans were evaluated in full, the table is
    the one fitted to the trials.
    """

    name = "additive"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        table = build_additive_table(state.space, state.sensitivities)
        if len({t.plan for t in state.full}) >= MIN_EVALUATIONS:
            table = compute_posterior_table(state)
        return propose_optima(state, table, n, origin="additive")


def propose_optima(
    state: StudyState, table: np.ndarray, n: int, *, origin: str, skip: int = 0
) -> list[Proposal]:
    """At most `n` proposals of plans not yet in the log: the optima of a table for a sweep of budgets."""
    seen = set(state.seen)
    proposals: list[Proposal] = []
    for budget in islice(_list_budgets(state), skip, None):
        if len(proposals) >= n:
            break
        plan = solve_table(state.space, table, budget)
        if plan not in seen:
            seen.add(plan)
            proposals.append(Proposal(plan, seed=state.seed, origin=origin))
    return proposals


def _list_budgets(state: StudyState) -> Iterator[int]:
    yield from state.budgets
    low, high = state.memory.minimum, state.largest_budget
    if state.memory_budgets:
        for step in range(1, SWEEP_STEPS):
            yield from (int(low + (b - low) * (1.0 - step / SWEEP_STEPS)) for b in state.memory_budgets)
        return
    step = 2
    while step <= SWEEP_STEPS:
        yield from (int(low + (high - low) * i / step) for i in range(step - 1, 0, -2))
        step *= 2
