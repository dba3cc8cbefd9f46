"""Exact optima of the additive problem: what the prior alone would choose, for a sweep of budgets."""

from __future__ import annotations

import numpy as np

from qra_search import knapsack
from qra_search.evaluation import Prior
from qra_search.space import Plan, SearchSpace
from qra_search.strategies.base import Strategy, StudyState
from qra_search.trials import Proposal

RANK_DECAY = 0.5
"""How fast rank repairs damage in the prior's table: the share left at rank r is (1 + r)^-RANK_DECAY. Fits SmolLM2
tuned on GSM8K at 3 bits: 52%, 36%, 24% and 17% of the untuned damage left at ranks 4, 8, 16 and 32."""
MAX_SWEEP = 512


class AdditiveStrategy(Strategy):
    """The multiple-choice knapsack over the prior, first at the named budgets, then ever finer between them."""

    name = "additive"

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        table = prior_table(state.space, state.prior)
        seen = set(state.seen)
        proposals: list[Proposal] = []
        for budget in _sweep(state):
            if len(proposals) >= n:
                break
            plan = additive_plan(state.space, table, budget)
            if plan is not None and plan.key not in seen:
                seen.add(plan.key)
                proposals.append(Proposal(plan, seed=state.seed, origin="additive"))
        return proposals


def additive_plan(space: SearchSpace, table: np.ndarray, budget: int) -> Plan | None:
    """Best plan under a budget if groups did not interact; None where nothing fits.

    Args:
        table: float (G, B, R), loss that each choice of each group adds, in nats.
    """
    groups, bits, ranks = table.shape
    cost = np.where(space.memory.allowed, table, np.inf).reshape(groups, bits * ranks)
    choice = knapsack.solve(cost, space.memory.choice.reshape(groups, -1), budget - space.fixed_bytes)
    return None if choice is None else space.decode(choice // ranks, choice % ranks)


def prior_table(space: SearchSpace, prior: Prior | None) -> np.ndarray:
    """float (G, B, R): loss in nats that each choice adds according to the prior.

    Damage falls with rank, since an adapter repairs a part of it. Without a prior every weight is taken to be
    damaged alike, by the round-to-nearest error of its bit-width, and rank to gain in proportion to log2.
    """
    prior = prior or flat_prior(space)
    ranks = np.asarray(space.ranks, dtype=float)
    left = (1.0 + ranks) ** -RANK_DECAY
    return prior.bits_damage[:, :, None] * left - prior.rank_gain[:, None, :]


def flat_prior(space: SearchSpace) -> Prior:
    """What is known before anything is measured: error falls fourfold a bit, and larger groups matter more."""
    share = np.array([g.weights for g in space.groups], dtype=float)
    share /= share.sum()
    error = np.array([4.0 ** (2 - b) if b < 16 else 0.0 for b in space.bits])
    gain = np.log2(1.0 + np.asarray(space.ranks, dtype=float)) * 0.01
    return Prior(share[:, None] * error, share[:, None] * gain, source="flat")


def _sweep(state: StudyState):
    """Budgets to solve for: the named ones, then midpoints of ever finer grids up to the largest."""
    yield from state.budgets
    low, high = state.memory.minimum, state.memory_limit
    step = 2
    while step <= MAX_SWEEP:
        yield from (int(low + (high - low) * i / step) for i in range(step - 1, 0, -2))
        step *= 2
