"""Exact optima of the additive problem: what the sensitivities, corrected by the trials, would choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from qra_search.allocate.solve import solve_table
from qra_search.allocate.table import additive_table, usable_sensitivities
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.strategies.base import Strategy, mean_estimates
from qra_search.surrogates.scales import fit_scales

SWEEP = 128
"""Steps from a named budget down to the smallest plan, and intervals of the finest grid where none is named."""
LEARN_FROM = 10


class AdditiveStrategy(Strategy):
    """The multiple-choice knapsack over the sensitivities for a sweep of budgets.

    First the named budgets; then a little under each of them, further and further. Where none is named, ever
    finer grids between the smallest and the largest plan. Once `learn_from` plans were evaluated in full, the
    prior's damage is scaled group by group to what they say.

    Args:
        learn_from: distinct plans before the trials correct the sensitivities; None never.
    """

    name = "additive"

    def __init__(self, learn_from: int | None = LEARN_FROM):
        self.learn_from = learn_from

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        learn = self.learn_from is not None and len({t.plan for t in state.full}) >= self.learn_from
        table = posterior_table(state) if learn else additive_table(state.space, state.sensitivities)
        seen = set(state.seen)
        proposals: list[Proposal] = []
        for budget in _sweep(state):
            if len(proposals) >= n:
                break
            plan = solve_table(state.space, table, budget)
            if plan.key not in seen:
                seen.add(plan.key)
                proposals.append(Proposal(plan, seed=state.seed, origin="additive"))
        return proposals


def posterior_table(state: StudyState) -> np.ndarray:
    """float (G, B, R): their table, each group's damage and the gain scaled to the trials at full fidelity."""
    estimates = mean_estimates(state.full)
    b, r = state.space.encode_many(estimates.plans)
    sensitivities = usable_sensitivities(state.space, state.sensitivities)
    damage = additive_table(state.space, replace(sensitivities, rank_gain=np.zeros_like(sensitivities.rank_gain)))
    rows = np.arange(len(damage))
    gain = sensitivities.rank_gain[rows, r].sum(1)
    scale, gain_scale = fit_scales(damage[rows, b, r], gain, estimates.mean)
    return scale[:, None, None] * damage - gain_scale * sensitivities.rank_gain[:, None, :]


def _sweep(state: StudyState) -> Iterator[int]:
    """Budgets to solve for, in order: see `AdditiveStrategy`."""
    yield from state.budgets
    low, high = state.memory.minimum, state.memory_limit
    if state.memory_budgets:
        for step in range(1, SWEEP):
            yield from (int(low + (b - low) * (1.0 - step / SWEEP)) for b in state.memory_budgets)
        return
    step = 2
    while step <= SWEEP:
        yield from (int(low + (high - low) * i / step) for i in range(step - 1, 0, -2))
        step *= 2
