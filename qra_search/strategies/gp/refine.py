"""The two stages of both papers: generations on the lowest fidelity, then a Gaussian process around the front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.strategies.base import mean_losses
from qra_search.strategies.evolution.edits import PlanCodec, fresh_plans
from qra_search.strategies.evolution.importance import JITTER, Importance, coverage_encoding, jittered_start
from qra_search.strategies.gp.belief import Belief, believe
from qra_search.strategies.gp.local_search import LocalSearch
from qra_search.surrogates.hypervolume_improvement import log_expected_improvement
from qra_search.surrogates.prior_table import prior_table

WARM_START = "warm start"

Neighbourhood = Callable[[Belief, np.ndarray, int], np.ndarray]
"""From a belief, the indices of its rows that fit a budget, and that budget: rows (M, 2 G) to choose from."""


def matern_belief(state: StudyState, importance: Importance) -> Belief | None:
    """A Matern-5/2 GP over ordinal places and coverage, of every plan once, pending ones fantasized.

    A plan evaluated in full counts with its full loss; one known only at a lower fidelity counts with that loss
    moved by the mean gap between the two, over the plans that have both, and not at all if none has.
    """
    known = mean_losses(state.full)
    for fidelity in sorted({t.fidelity for t in state.done if t.fidelity < 1.0}, reverse=True):
        low = mean_losses([t for t in state.done if t.fidelity == fidelity])
        gaps = [known[plan] - low[plan] for plan in low if plan in known]
        if gaps:
            known |= {plan: loss + float(np.mean(gaps)) for plan, loss in low.items() if plan not in known}
    levels = PlanCodec(state.space)
    return believe(
        levels,
        known,
        coverage_encoding(levels, importance),
        prior_table(state.space, state.sensitivities),
        kernel="matern52",
        ard=False,
        use_proxy=False,
        pending=[t.plan for t in state.pending],
        seed=state.seed,
    )


def evolve(
    state: StudyState,
    importance: Importance,
    population: int,
    parents_of: Callable[[Sequence[Trial], int], Any],
    breed: Callable[[Any, int, np.random.Generator], tuple[np.ndarray, str]],
) -> Proposal | None:
    """The next plan to evaluate at the lowest fidelity: first a generation of warm starts, then offspring.

    Args:
        parents_of: from the trials of the generations before, and their number, what is bred from; None if too few.
        breed: from these, the budget in turn and a generator, a row (2 G,) and its origin.
    """
    levels, proxy, budget = PlanCodec(state.space), state.fidelities[0], budgets_in_turn(state)[0]
    tried = [t for t in state.trials if t.fidelity == proxy]
    warm = sum(t.proposal.origin == WARM_START for t in tried)
    generation = len(tried) // population
    before = tried[: generation * population]
    parents = parents_of(before, generation) if warm >= population else None

    def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        if parents is None:
            return jittered_start(levels, importance, budget, rng, JITTER if warm else 0.0), WARM_START
        return breed(parents, budget, rng)

    return next(iter(fresh_plans(state, 1, draw, fidelity=proxy)), None)


def refine(
    state: StudyState, importance: Importance, neighbourhood: Neighbourhood, origin: Callable[[int], str]
) -> Proposal | None:
    """The plan near the front with the largest expected improvement, at full fidelity; a warm start if there is none.

    Args:
        origin: from the budget that it is for, the origin of the proposal.
    """
    belief = matern_belief(state, importance)
    found = None if belief is None else best_improvement(state, belief, tried_in_full(state), neighbourhood)
    levels, budget = PlanCodec(state.space), budgets_in_turn(state)[0]
    if found is not None:
        return Proposal(levels.decode(found[0]), seed=state.seed, origin=origin(found[1]))
    starts = fresh_plans(state, 1, lambda _, rng: (jittered_start(levels, importance, budget, rng), WARM_START))
    return next(iter(starts), None)


def tried_in_full(state: StudyState) -> set[str]:
    """Keys of the plans that were evaluated in full, are being so, or failed."""
    return {t.plan.key for t in state.trials if t.fidelity >= 1.0 or t.status == "failed"}


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


def atomic_edits(levels: PlanCodec, row: np.ndarray) -> np.ndarray:
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
