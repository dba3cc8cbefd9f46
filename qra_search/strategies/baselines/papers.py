"""What both papers share: importances of groups, generations on the lowest fidelity, then a GP around the front.

Equation numbers are those of AutoQRA (arXiv 2602.22268), which took them over from QR-Adaptor (arXiv 2505.03802).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pymoo.core.population import Population

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.table import additive_table, flat_sensitivities
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.space.space import SearchSpace
from qra_search.strategies.base import mean_losses
from qra_search.strategies.baselines.belief import Belief, believe, best_rows, known_rows
from qra_search.strategies.baselines.nsga2 import mutate
from qra_search.strategies.baselines.proposing import budgets_in_turn, fresh_plans
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.surrogates.gp import choice_values, ordinal_choices
from qra_search.surrogates.hypervolume_improvement import log_expected_improvement

WARM_START = "warm start"
EPSILON = 1e-8
BISECTIONS = 40
JITTER = 0.1
"""Chance of each variable of a warm start to take one step, for diversity."""

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
    encoding, table = coverage_encoding(codec, importance), additive_table(state.space, state.sensitivities)
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


@dataclass(frozen=True)
class Importance:
    """Importance of the bits and the rank of every group, each (G,), within [0, 1] and 1 for the most important."""

    bits: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, space: SearchSpace, sensitivities: Sensitivities | None) -> Importance:
        """Bits by the damage of the smallest bit-width, ranks by the gain of the largest; all alike where it is 0."""
        sensitivities = sensitivities or flat_sensitivities(space)
        rows = np.arange(len(space))
        damage = sensitivities.bits_damage[rows, space.bits_allowed.argmax(1)]
        gain = sensitivities.rank_gain[rows, len(space.ranks) - 1 - space.ranks_allowed[:, ::-1].argmax(1)]
        return cls(_share_of_largest(damage), _share_of_largest(gain))

    @property
    def variables(self) -> np.ndarray:
        """float (2 G,): the importance of every variable."""
        return np.concatenate([self.bits, self.ranks])


def warm_start(codec: PlanCodec, importance: Importance, budget: int) -> np.ndarray:
    """int (2 G,): bits and ranks that rise with importance (eq. 6), by as much as the budget allows.

    A variable takes the allowed choice nearest to smallest + (largest - smallest) * min(1, scale * importance);
    the scale is the largest that fits.
    """
    values = _values(codec)
    least, most = np.nanmin(values, 1), np.nanmax(values, 1)

    def at(scale: float) -> np.ndarray:
        wanted = least + np.minimum(1.0, scale * importance.variables) * (most - least)
        return np.nanargmin(np.abs(values - wanted[:, None]), 1)

    low, high = 0.0, 1.0 / max(float(importance.variables[importance.variables > 0].min(initial=1.0)), EPSILON)
    if codec.bytes(at(high)) <= budget:
        return at(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if codec.bytes(at(middle)) <= budget else (low, middle)
    return at(low)


def jittered_start(
    codec: PlanCodec, importance: Importance, budget: int, rng: np.random.Generator, rate: float = JITTER
) -> np.ndarray:
    """int (2 G,): a warm start of which each variable took, with chance `rate`, one step; within the budget."""
    row = warm_start(codec, importance, budget)
    return codec.repair(mutate(codec, row, rate, rng), budget, rng) if rate > 0 else row


def repair_by_importance(
    codec: PlanCodec, row: np.ndarray, budget: int, importance: Importance, keep: int | None = None
) -> np.ndarray:
    """int (2 G,): the row brought under the budget by the single steps down that cost least (eqs. 4 and 5).

    Each step is the one with the smallest (importance + epsilon) / bytes saved; deterministic.

    Args:
        keep: a variable that goes down last.

    Raises:
        BudgetTooSmall: no plan fits.
    """
    codec.space.memory.check_budget(budget)
    row, v = row.copy(), np.arange(codec.variables)
    total = int(codec.bytes(row))
    while total > budget:
        down = codec.below[v, row]
        saved = codec.bytes_of[v, row] - codec.bytes_of[v, down]
        price = np.where(saved > 0, (importance.variables + EPSILON) / np.maximum(saved, 1), np.inf)
        if keep is not None and np.isfinite(np.delete(price, keep)).any():
            price[keep] = np.inf
        if not np.isfinite(price).any():
            # Bytes do not rise with every step up: take each variable's smallest choice outright.
            return np.where(codec.allowed, codec.bytes_of, np.iinfo(np.int64).max).argmin(1)
        step = int(price.argmin())
        row[step] = down[step]
        total -= int(saved[step])
    return row


def coverage_encoding(codec: PlanCodec, importance: Importance) -> Callable[[np.ndarray], np.ndarray]:
    """Ordinal places of all variables, and how well bits and ranks cover what is important (eq. 9).

    Returns:
        A function of rows (M, 2 G) to inputs (M, 2 G + 2), each within [0, 1].
    """
    values, groups = ordinal_choices(codec.space), codec.groups
    weights = [w / w.sum() for w in (importance.bits, importance.ranks)]

    def encode(rows: np.ndarray) -> np.ndarray:
        places = choice_values(values, rows)
        covered = [places[:, :groups] @ weights[0], places[:, groups:] @ weights[1]]
        return np.column_stack([places, *covered])

    return encode


def _values(codec: PlanCodec) -> np.ndarray:
    """float (2 G, K): the width or rank of each choice of each variable; nan if it is not allowed."""
    values = np.full(codec.allowed.shape, np.nan)
    values[: codec.groups, : len(codec.space.bits)] = codec.space.widths
    values[codec.groups :, : len(codec.space.ranks)] = codec.space.ranks
    return np.where(codec.allowed, values, np.nan)


def _share_of_largest(values: np.ndarray) -> np.ndarray:
    values = np.maximum(values, 0.0)
    return values / values.max() if values.max() > 0 else np.ones_like(values)
