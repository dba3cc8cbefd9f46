"""What both papers share: importances of groups, generations on the lowest fidelity, then a GP around the front.

Equation numbers are those of AutoQRA (arXiv 2602.22268), which took them over from QR-Adaptor (arXiv 2505.03802).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pymoo.core.population import Population

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.allocate.table import additive_table, flat_sensitivities
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.space.space import Plan, SearchSpace
from qra_search.space.steps import Steps, entries
from qra_search.strategies.base import mean_losses
from qra_search.strategies.baselines.belief import Belief, believe, best_codes
from qra_search.strategies.baselines.nsga2 import mutate
from qra_search.strategies.baselines.proposing import budgets_in_turn, fresh_plans
from qra_search.surrogates.acquisition import log_expected_improvement
from qra_search.surrogates.gp import choice_values, ordinal_choices

WARM_START = "warm start"
EPSILON = 1e-8
BISECTIONS = 40
JITTER = 0.1
"""Chance of each variable of a warm start to take one step, for diversity."""

Neighbourhood = Callable[[Belief, np.ndarray, int], np.ndarray]
"""From a belief, the indices of its plans that fit a budget, and that budget: codes (M, 2, G) to choose from."""


def check_share(name: str, share: float) -> None:
    """ValueError if an option is not a share."""
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{name} is a share and must be from 0 to 1, got {share}")


def evolve(
    state: StudyState,
    importance: np.ndarray,
    population: int,
    parents_of: Callable[[list[Trial], int], Population | None],
    breed: Callable[[Population, int, np.random.Generator], tuple[np.ndarray, str]],
) -> Proposal | None:
    """The next plan to evaluate at the lowest fidelity: first a generation of warm starts, then offspring.

    Args:
        parents_of: from the trials of the generations before, and their number, what is bred from; None if too few.
        breed: from these, the budget in turn and a generator, a code (2, G) and its origin.
    """
    steps, proxy, budget = Steps(state.space), state.fidelities[0], budgets_in_turn(state)[0]
    tried = [t for t in state.trials if t.fidelity == proxy]
    warm = sum(t.proposal.origin == WARM_START for t in tried)
    generation = len(tried) // population
    parents = parents_of(tried[: generation * population], generation) if warm >= population else None

    def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        if parents is None:
            return jittered_start(steps, importance, budget, rng, JITTER if warm else 0.0), WARM_START
        return breed(parents, budget, rng)

    return next(iter(fresh_plans(state, 1, draw, fidelity=proxy)), None)


def refine(
    state: StudyState, importance: np.ndarray, neighbourhood: Neighbourhood, origin: Callable[[int], str]
) -> Proposal | None:
    """The plan near the front with the largest expected improvement, at full fidelity; a warm start if there is none.

    Args:
        origin: from the budget that it is for, the origin of the proposal.
    """
    belief = matern_belief(state, importance)
    found = None if belief is None else best_improvement(state, belief, tried_in_full(state), neighbourhood)
    steps, budget = Steps(state.space), budgets_in_turn(state)[0]
    if found is not None:
        return Proposal(state.space.decode(found[0]), seed=state.seed, origin=origin(found[1]))
    starts = fresh_plans(state, 1, lambda _, rng: (jittered_start(steps, importance, budget, rng), WARM_START))
    return next(iter(starts), None)


def matern_belief(state: StudyState, importance: np.ndarray) -> Belief | None:
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
    space = state.space
    encoding, table = coverage_encoding(space, importance), additive_table(space, state.sensitivities)
    pending = [t.plan for t in state.pending]
    return believe(
        space, known, encoding, table, pending, kernel="matern52", ard=False, use_proxy=False, seed=state.seed
    )


def tried_in_full(state: StudyState) -> set[Plan]:
    """The plans that were evaluated in full, are being so, or failed."""
    return {t.plan for t in state.trials if t.fidelity >= 1.0 or t.status == "failed"}


def best_improvement(
    state: StudyState, belief: Belief, seen: set[Plan], neighbourhood: Neighbourhood
) -> tuple[np.ndarray, int] | None:
    """The code with the largest expected improvement under the budget in turn, and that budget.

    If nothing unseen is near under that budget, the next one is served. The incumbent is the lowest posterior mean of
    the known plans within the budget, so that no lucky draw sets it.

    Args:
        seen: plans that may not be proposed.
    """
    space, mean = belief.space, belief.mean(belief.codes)
    sizes, known = space.memory.bytes(belief.codes), space.encode_many(seen)
    for budget in budgets_in_turn(state):
        fitting = np.flatnonzero(sizes <= budget)
        if not len(fitting):
            continue
        incumbent = mean[fitting].min()

        def score(codes: np.ndarray, level: float = incumbent) -> np.ndarray:
            return log_expected_improvement(*belief.predict(codes), np.asarray(level))

        codes, _ = best_codes(space, score, neighbourhood(belief, fitting, budget), known, budget)
        if len(codes):
            return codes[0], budget
    return None


def atomic_edits(steps: Steps, code: np.ndarray) -> np.ndarray:
    """int (M, 2, G): all codes one edit away: a step of one bit-width or rank, or of both in one group (eq. 11)."""
    both = []
    for first in (steps.down(code), steps.up(code)):
        for second in (steps.down(code), steps.up(code)):
            for g in np.flatnonzero((first[0] != code[0]) & (second[1] != code[1])):
                edited = code.copy()
                edited[:, g] = first[0, g], second[1, g]
                both.append(edited)
    return np.concatenate([steps.neighbours(code), np.array(both, dtype=code.dtype).reshape(-1, *code.shape)])


def measure_importance(space: SearchSpace, sensitivities: Sensitivities | None) -> np.ndarray:
    """float (2, G), within [0, 1]: the importance of the bits and the rank of every group, 1 for the most important.

    Bits by the damage of the smallest bit-width, ranks by the gain of the largest; all equal if that is 0.
    """
    sensitivities = sensitivities or flat_sensitivities(space)
    rows = np.arange(len(space))
    damage = sensitivities.bits_damage[rows, space.bits_allowed.argmax(1)]
    gain = sensitivities.rank_gain[rows, len(space.ranks) - 1 - space.ranks_allowed[:, ::-1].argmax(1)]
    return np.stack([_share_of_largest(damage), _share_of_largest(gain)])


def warm_start(steps: Steps, importance: np.ndarray, budget: int) -> np.ndarray:
    """int (2, G): bits and ranks that rise with importance (eq. 6), by as much as the budget allows.

    A variable takes the allowed choice nearest to smallest + (largest - smallest) * min(1, scale * importance);
    the scale is the largest that fits.
    """
    values, memory = _values(steps), steps.space.memory
    least, most = np.nanmin(values, -1), np.nanmax(values, -1)

    def at(scale: float) -> np.ndarray:
        wanted = least + np.minimum(1.0, scale * importance) * (most - least)
        return np.nanargmin(np.abs(values - wanted[..., None]), -1)

    low, high = 0.0, 1.0 / max(float(importance[importance > 0].min(initial=1.0)), EPSILON)
    if memory.bytes(at(high)) <= budget:
        return at(high)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if memory.bytes(at(middle)) <= budget else (low, middle)
    return at(low)


def jittered_start(
    steps: Steps, importance: np.ndarray, budget: int, rng: np.random.Generator, rate: float = JITTER
) -> np.ndarray:
    """int (2, G): a warm start of which each variable took, with chance `rate`, one step; within the budget."""
    code = warm_start(steps, importance, budget)
    return steps.repair(mutate(steps, code, rate, rng), budget, rng) if rate > 0 else code


def repair_by_importance(
    steps: Steps, code: np.ndarray, budget: int, importance: np.ndarray, keep: int | None = None
) -> np.ndarray:
    """int (2, G): the code brought under the budget by the single steps down that cost least (eqs. 4 and 5).

    Each step is the one with the smallest (importance + epsilon) / bytes saved; deterministic.

    Args:
        keep: a variable, by its index in the flattened code, that goes down last.

    Raises:
        BudgetTooSmall: no plan fits.
    """
    steps.space.memory.check_budget(budget)
    code, total = code.copy(), int(steps.space.memory.bytes(code))
    while total > budget:
        down = steps.down(code)
        saved = entries(steps.sizes, code) - entries(steps.sizes, down)
        price = np.where(saved > 0, (importance + EPSILON) / np.maximum(saved, 1), np.inf)
        if keep is not None and np.isfinite(np.delete(price, keep)).any():
            price.flat[keep] = np.inf
        if not np.isfinite(price).any():
            # Bytes do not rise with every step up: take each variable's smallest choice outright.
            return np.where(steps.allowed, steps.sizes, np.iinfo(np.int64).max).argmin(-1)
        step = int(price.argmin())
        code.flat[step] = down.flat[step]
        total -= int(saved.flat[step])
    return code


def coverage_encoding(space: SearchSpace, importance: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Ordinal places of all variables, and how well bits and ranks cover what is important (eq. 9).

    Returns:
        A function of codes (M, 2, G) to inputs (M, 2 G + 2), each within [0, 1].
    """
    values = ordinal_choices(space)
    weights = importance / importance.sum(1, keepdims=True)

    def encode(codes: np.ndarray) -> np.ndarray:
        places = entries(values, codes)
        covered = [places[:, side] @ weights[side] for side in (0, 1)]
        return np.column_stack([choice_values(values, codes), *covered])

    return encode


def _values(steps: Steps) -> np.ndarray:
    """float (2, G, K): the width or rank of each choice of each variable; nan if it is not allowed."""
    values = np.full(steps.allowed.shape, np.nan)
    values[0, :, : len(steps.space.bits)] = steps.space.widths
    values[1, :, : len(steps.space.ranks)] = steps.space.ranks
    return np.where(steps.allowed, values, np.nan)


def _share_of_largest(values: np.ndarray) -> np.ndarray:
    values = np.maximum(values, 0.0)
    return values / values.max() if values.max() > 0 else np.ones_like(values)
