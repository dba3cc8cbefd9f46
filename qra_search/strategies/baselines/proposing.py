"""What several baselines share: budgets in turn, and plans that the log does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.strategies.random import random_plan

ATTEMPTS = 60
"""Draws for one proposal before random plans take its place, and as many of those before the list ends."""


def budget_in_turn(state: StudyState, offset: int = 0) -> int:
    """The named budgets in turn, by the number of the proposal; the largest plan's bytes if none is named."""
    return budgets_in_turn(state, offset)[0] if state.memory_budgets else state.memory_limit


def budgets_in_turn(state: StudyState, offset: int = 0) -> list[int]:
    """All budgets, beginning with the one whose turn it is by the number of the proposal."""
    start = (len(state.trials) + offset) % len(state.budgets)
    return list(state.budgets[start:] + state.budgets[:start])


def propose_one_by_one(state: StudyState, n: int, ask: Callable[[StudyState], Proposal | None]) -> list[Proposal]:
    """At most `n` proposals, each asked for as if the earlier ones were running trials already."""
    proposals: list[Proposal] = []
    while len(proposals) < n and (proposal := ask(state)) is not None:
        proposals.append(proposal)
        state = replace(state, trials=(*state.trials, Trial(len(state.trials), proposal)))
    return proposals


def fresh_plans(
    state: StudyState,
    n: int,
    draw: Callable[[int, np.random.Generator], tuple[np.ndarray, str]],
    *,
    fidelity: float = 1.0,
) -> list[Proposal]:
    """At most `n` proposals of plans that the log does not hold.

    Args:
        draw: from the offset of the proposal and its generator, a code (2, G) and its origin. It is called again while
            the plan is known; then random plans within the budget take its place.
    """
    seen = set(state.seen)
    proposals: list[Proposal] = []
    for offset in range(n):
        rng = state.rng(offset)
        for attempt in range(2 * ATTEMPTS):
            if attempt < ATTEMPTS:
                code, origin = draw(offset, rng)
                plan = state.space.decode(code)
            else:
                plan, origin = random_plan(state, rng, budget_in_turn(state, offset)), "random"
            if plan not in seen:
                seen.add(plan)
                proposals.append(Proposal(plan, fidelity=fidelity, seed=state.seed, origin=origin))
                break
    return proposals
