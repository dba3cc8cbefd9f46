"""Refinement around the front by a Gaussian process and expected improvement: the last phase of both papers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qra_search.log.state import StudyState
from qra_search.strategies.evolution.edits import Levels
from qra_search.strategies.evolution.importance import Importance, coverage_encoding
from qra_search.strategies.evolution.survival import mean_losses
from qra_search.strategies.gp.belief import Belief, believe
from qra_search.strategies.gp.local_search import LocalSearch
from qra_search.surrogates.memory_strips import log_expected_improvement
from qra_search.surrogates.prior_table import prior_table

Neighbourhood = Callable[[Belief, np.ndarray, int], np.ndarray]
"""From a belief, the indices of its rows that fit a budget, and that budget: rows (M, 2 G) to choose from."""


def matern_belief(state: StudyState, importance: Importance) -> Belief | None:
    """A Matern-5/2 GP over ordinal places and coverage, of every plan once, pending ones fantasized.

    A plan evaluated in full counts with its full loss; one known only at a lower fidelity counts with that loss
    moved by the mean gap between the two, over the plans that have both, and not at all if none has.
    """
    plans, losses = mean_losses(state.full)
    known = {plan.key: loss for plan, loss in zip(plans, losses, strict=True)}
    for fidelity in sorted({t.fidelity for t in state.done if t.fidelity < 1.0}, reverse=True):
        low_plans, low_losses = mean_losses([t for t in state.done if t.fidelity == fidelity])
        low = {plan.key: loss for plan, loss in zip(low_plans, low_losses, strict=True)}
        full = {plan.key: loss for plan, loss in zip(plans, losses, strict=True)}
        gaps = [full[k] - low[k] for k in low if k in full]
        for plan in low_plans if gaps else []:
            if plan.key not in known:
                known[plan.key] = low[plan.key] + float(np.mean(gaps))
                plans = [*plans, plan]
                losses = np.append(losses, known[plan.key])
    levels = Levels(state.space)
    return believe(
        levels,
        plans,
        losses,
        coverage_encoding(levels, importance),
        prior_table(state.space, state.prior),
        kernel="matern52",
        ard=False,
        use_proxy=False,
        pending=[t.plan for t in state.pending],
        seed=state.seed,
    )


def best_improvement(
    state: StudyState, belief: Belief, seen: set[str], neighbourhood: Neighbourhood
) -> tuple[np.ndarray, int] | None:
    """The row with the largest expected improvement under the budget in turn, and that budget.

    Where nothing unseen is near under that budget, the next one is served. The incumbent is the lowest posterior
    mean of the known plans within the budget, so that no lucky draw sets it.

    Args:
        seen: keys of the plans that may not be proposed.
    """
    levels, mean = belief.levels, belief.mean(belief.rows)
    sizes = levels.bytes(belief.rows)
    for budget in budgets_in_turn(state):
        fitting = np.flatnonzero(sizes <= budget)
        if not len(fitting):
            continue
        incumbent = mean[fitting].min()

        def score(rows: np.ndarray, level: float = incumbent) -> np.ndarray:
            return log_expected_improvement(*belief.predict(rows), np.asarray(level))

        rows, _ = LocalSearch(levels, score, seen, budget).best(neighbourhood(belief, fitting, budget))
        if len(rows):
            return rows[0], budget
    return None


def budgets_in_turn(state: StudyState) -> list[int]:
    """All budgets, beginning with the one whose turn it is by the number of the proposal."""
    start = len(state.trials) % len(state.budgets)
    return list(state.budgets[start:] + state.budgets[:start])


def atomic_edits(levels: Levels, row: np.ndarray) -> np.ndarray:
    """int (M, 2 G): all rows one edit away: a step of one bit-width or rank, or of both in one group (eq. 11)."""
    single = levels.neighbours(row)
    both = []
    for g in range(levels.groups):
        k = g + levels.groups
        for b in {int(levels.below[g, row[g]]), int(levels.above[g, row[g]])} - {int(row[g])}:
            for r in {int(levels.below[k, row[k]]), int(levels.above[k, row[k]])} - {int(row[k])}:
                edited = row.copy()
                edited[g], edited[k] = b, r
                both.append(edited)
    return np.concatenate([single, np.array(both, dtype=row.dtype).reshape(-1, levels.variables)])
