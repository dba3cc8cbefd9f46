"""The two stages of both papers: generations on the lowest fidelity, then a Gaussian process around the front."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pymoo.core.population import Population

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.strategies.base import mean_losses
from qra_search.strategies.baselines.belief import Belief, believe, best_rows, known_rows
from qra_search.strategies.baselines.importance import JITTER, Importance, coverage_encoding, jittered_start
from qra_search.strategies.baselines.proposing import budgets_in_turn, fresh_plans
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.surrogates.hypervolume_improvement import log_expected_improvement
from qra_search.surrogates.prior_table import prior_table

WARM_START = "warm start"

Neighbourhood = Callable[[Belief, np.ndarray, int], np.ndarray]
"""From a belief, the indices of its rows that fit a budget, and that budget: rows (M, 2 G) to choose from."""


def check_share(name: str, share: float) -> None:
    """ValueError if an option is not a share."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{name} is a share and must be from 0 to 1, got {share}")


def evolve(
    state: StudyState,
    importance: Importance,
    population: int,
    parents_of: Callable[[list[Trial], int], Population | None],
    breed: Callable[[Population, int, np.random.Generator], tuple[np.ndarray, str]],
) -> Proposal | None:
    """The next plan to evaluate at the lowest fidelity: first a generation of warm starts, then offspring.

    Args:
        parents_of: from the trials of the generations before, and their number, what is bred from; None if too few.
        breed: from these, the budget in turn and a generator, a row (2 G,) and its origin.
    """
    codec, proxy, budget = PlanCodec(state.space), state.fidelities[0], budgets_in_turn(state)[0]
    tried = [t for t in state.trials if t.fidelity == proxy]
    warm = sum(t.proposal.origin == WARM_START for t in tried)
    generation = len(tried) // population
    parents = parents_of(tried[: generation * population], generation) if warm >= population else None

    def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        if parents is None:
            return jittered_start(codec, importance, budget, rng, JITTER if warm else 0.0), WARM_START
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
    codec, budget = PlanCodec(state.space), budgets_in_turn(state)[0]
    if found is not None:
        return Proposal(codec.decode(found[0]), seed=state.seed, origin=origin(found[1]))
    starts = fresh_plans(state, 1, lambda _, rng: (jittered_start(codec, importance, budget, rng), WARM_START))
    return next(iter(starts), None)


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
    codec = PlanCodec(state.space)
    encoding, table = coverage_encoding(codec, importance), prior_table(state.space, state.sensitivities)
    pending = [t.plan for t in state.pending]
    return believe(
        codec, known, encoding, table, pending, kernel="matern52", ard=False, use_proxy=False, seed=state.seed
    )


def tried_in_full(state: StudyState) -> set[str]:
    """Keys of the plans that were evaluated in full, are being so, or failed."""
    return {t.plan.key for t in state.trials if t.fidelity >= 1.0 or t.status == "failed"}


def best_improvement(
    state: StudyState, belief: Belief, seen: set[str], neighbourhood: Neighbourhood
) -> tuple[np.ndarray, int] | None:
    """The row with the largest expected improvement under the budget in turn, and that budget.

    If nothing unseen is near under that budget, the next one is served. The incumbent is the lowest posterior mean of
    the known plans within the budget, so that no lucky draw sets it.

    Args:
        seen: keys of the plans that may not be proposed.
    """
    codec, mean = belief.codec, belief.mean(belief.rows)
    sizes, known = codec.bytes(belief.rows), known_rows(codec, seen)
    for budget in budgets_in_turn(state):
        fitting = np.flatnonzero(sizes <= budget)
        if not len(fitting):
            continue
        incumbent = mean[fitting].min()

        def score(rows: np.ndarray, level: float = incumbent) -> np.ndarray:
            return log_expected_improvement(*belief.predict(rows), np.asarray(level))

        rows, _ = best_rows(codec, score, neighbourhood(belief, fitting, budget), known, budget)
        if len(rows):
            return rows[0], budget
    return None


def atomic_edits(codec: PlanCodec, row: np.ndarray) -> np.ndarray:
    """int (M, 2 G): all rows one edit away: a step of one bit-width or rank, or of both in one group (eq. 11)."""
    both = []
    for g in range(codec.groups):
        k = g + codec.groups
        for b in {int(codec.below[g, row[g]]), int(codec.above[g, row[g]])} - {int(row[g])}:
            for r in {int(codec.below[k, row[k]]), int(codec.above[k, row[k]])} - {int(row[k])}:
                edited = row.copy()
                edited[g], edited[k] = b, r
                both.append(edited)
    return np.concatenate([codec.neighbours(row), np.array(both, dtype=row.dtype).reshape(-1, codec.variables)])
