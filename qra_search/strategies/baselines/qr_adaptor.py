"""QR-Adaptor (arXiv 2505.03802), and what AutoQRA shares with it: importances of groups, generations on the lowest
fidelity, then a GP around the front.

Equation numbers are those of AutoQRA (arXiv 2602.22268), which took them over from QR-Adaptor (arXiv 2505.03802).
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from pymoo.core.population import Population

from qra_search.allocate.solve import make_flat_sensitivities
from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal, Sensitivities, Trial
from qra_search.space.space import SearchSpace
from qra_search.space.steps import AdjacentSteps, select_entries
from qra_search.strategies import Strategy, average_losses, find_non_dominated
from qra_search.strategies.baselines.nsga2 import breed_child, check_population, mutate, select_survivors
from qra_search.strategies.simple import propose_new, rotate_budgets
from qra_search.surrogates.acquisition import log_expected_improvement, rank_codes
from qra_search.surrogates.gp import PlanGP, encode_inputs, fit_plan_gp, scale_by_order

WARM_START_ORIGIN = "warm start"
PROMOTED_ORIGIN = "promoted"
REFINED_ORIGIN = "refined"
POPULATION = 12
EVOLUTION_SHARE = 0.5
EPSILON = 1e-8
IMPORTANCE_SCALES = 1 << 40
"""Scales of importance that a warm start is chosen from."""
JITTER_CHANCE = 0.1
"""Chance of each variable of a warm start to take one step, for diversity."""


@dataclass(frozen=True)
class GuidedSteps(AdjacentSteps):
    """Steps that know the importance, within [0, 1], of the bits and the rank of every group: float (2, G)."""

    importance: np.ndarray

    def make_warm_start(self, budget: int) -> np.ndarray:
        """int (2, G): bits and ranks that rise with importance (eq. 6), by as much as the budget allows.

        A variable takes the allowed choice nearest to smallest + (largest - smallest) * min(1, scale * importance);
        the scale is the largest that fits.
        """
        values = np.full(self.allowed.shape, np.nan)
        values[0, :, : len(self.space.bits)] = self.space.widths
        values[1, :, : len(self.space.ranks)] = self.space.ranks
        values = np.where(self.allowed, values, np.nan)
        least = np.nanmin(values, -1)
        most = np.nanmax(values, -1)
        enough = 1.0 / max(float(self.importance[self.importance > 0].min(initial=1.0)), EPSILON)

        def start(scale: int) -> np.ndarray:
            wanted = least + np.minimum(1.0, scale / IMPORTANCE_SCALES * enough * self.importance) * (
                most - least
            )
            return np.nanargmin(np.abs(values - wanted[..., None]), -1)

        fitting = bisect.bisect_right(
            range(IMPORTANCE_SCALES + 1), budget, key=lambda s: int(self.space.memory.bytes(start(s)))
        )
        # Even the first may not fit, if the smaller of two levels of one width is not the first of them.
        return self.repair_by_importance(start(max(fitting - 1, 0)), budget)

    def jitter_warm_start(self, budget: int, rng: np.random.Generator) -> np.ndarray:
        return self.repair(mutate(self, self.make_warm_start(budget), JITTER_CHANCE, rng), budget, rng)

    def repair_by_importance(self, code: np.ndarray, budget: int, keep: int | None = None) -> np.ndarray:
        """int (2, G): the code brought under the budget by the single steps down that cost least (eqs. 4 and 5).

        Each step is the one with the smallest (importance + epsilon) / bytes saved; deterministic.

        Args:
            keep: a variable, by its index in the flattened code, that goes down last.

        Raises:
            BudgetTooSmall: no plan fits.
        """
        self.space.memory.check_budget(budget)
        code, total = code.copy(), int(self.space.memory.bytes(code))
        while total > budget:
            down = self.decrease_choices(code)
            saved = select_entries(self.sizes, code) - select_entries(self.sizes, down)
            price = np.where(saved > 0, (self.importance + EPSILON) / np.maximum(saved, 1), np.inf)
            if keep is not None and np.isfinite(np.delete(price, keep)).any():
                price.flat[keep] = np.inf
            if not np.isfinite(price).any():
                # Bytes do not rise with every step up: take the smallest plan outright.
                return self.smallest
            step = int(price.argmin())
            code.flat[step] = down.flat[step]
            total -= int(saved.flat[step])
        return code

    def compute_coverage(self, codes: np.ndarray) -> np.ndarray:
        """float (M, 2), within [0, 1]: how well bits and ranks cover what is important (eq. 9)."""
        places = select_entries(scale_by_order(self.space), codes)
        return (places * (self.importance / self.importance.sum(1, keepdims=True))).sum(-1)

    def encode(self, codes: np.ndarray) -> np.ndarray:
        """float (M, 2 G + 3), within [0, 1]: places of all choices, coverage, and no proxy of the loss."""
        places = encode_inputs(scale_by_order(self.space), codes)
        return np.column_stack([places, self.compute_coverage(codes), np.zeros(len(codes))])

    def list_atomic_edits(self, code: np.ndarray) -> np.ndarray:
        """int (M, 2, G): all codes one edit away: a step of one bit-width or rank, or of both in one group (eq. 11)."""
        edits = list(self.list_neighbours(code))
        for first in (self.decrease_choices(code), self.increase_choices(code)):
            for second in (self.decrease_choices(code), self.increase_choices(code)):
                for g in np.flatnonzero((first[0] != code[0]) & (second[1] != code[1])):
                    edited = code.copy()
                    edited[:, g] = first[0, g], second[1, g]
                    edits.append(edited)
        return np.array(edits, dtype=code.dtype).reshape(-1, *code.shape)


class QRAdaptorStrategy(Strategy):
    """The three phases of the paper QR-Adaptor, each derived from the log.

    I. `population` plans whose bits and ranks rise with the sensitivities, jittered.
    II. NSGA-II with layer-atomic crossover and adjacent mutation, until a share of the evaluations is spent.
    III. A Matern-5/2 GP, and expected improvement over the atomic edits of its front, under the budgets in turn.

    Phases I and II use proxy tuning: the evaluator's lowest fidelity, whose losses are only ranked among
    themselves. Phase III is at full fidelity, and begins with the best plan of phase II under every budget.

    Args:
        population: plans of the warm start, and of a generation.
        evolution: share of the evaluations that evolution may spend.
    """

    name = "qr_adaptor"

    def __init__(self, population: int = POPULATION, evolution: float = EVOLUTION_SHARE):
        if not 0.0 <= evolution <= 1.0:
            raise ValueError(
                f"option 'evolution' of strategy 'qr_adaptor' is a share and must be from 0 to 1, got {evolution}"
            )
        self.population = check_population(population)
        self.evolution = evolution

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        """Each is asked for as if the earlier ones were running trials already."""
        proposals: list[Proposal] = []
        steps = GuidedSteps(state.space, derive_importance(state.space, state.sensitivities))
        while len(proposals) < n and (proposal := self.propose_one(state, steps)) is not None:
            proposals.append(proposal)
            state = replace(state, trials=(*state.trials, Trial(len(state.trials), proposal)))
        return proposals

    def propose_one(self, state: StudyState, steps: GuidedSteps) -> Proposal | None:
        proposal = None
        if self.is_evolving(state):
            tried = select_trials(state, state.fidelities[0])
            complete = tried[: len(tried) // self.population * self.population]
            proposal = self.evolve(state, steps, average_losses([t for t in complete if t.done]))
        return proposal or self._choose_promotion(state) or self.refine(state, steps, REFINED_ORIGIN)

    def breed(
        self, steps: GuidedSteps, parents: Population, budget: int, rng: np.random.Generator
    ) -> np.ndarray:
        return breed_child(steps, parents, budget, rng)

    def list_candidates(
        self, state: StudyState, steps: GuidedSteps, fitting: PlanGP, budget: int
    ) -> np.ndarray:
        """The atomic edits of the front, by posterior mean, of the plans within the budget."""
        front = find_non_dominated(fitting.predict(fitting.codes)[0], state.memory.bytes(fitting.codes))
        return np.concatenate([steps.list_atomic_edits(code) for code in fitting.codes[front]])

    def _choose_promotion(self, state: StudyState) -> Proposal | None:
        """A plan that is the best of phase II under some budget, and was not yet evaluated in full."""
        tried = {t.plan for t in state.trials if t.fidelity >= 1.0 or t.status == "failed"}
        losses = average_losses([t for t in state.done if t.fidelity == state.fidelities[0] < 1.0])
        for budget in state.budgets:
            fitting = [plan for plan in losses if state.space.memory_bytes(plan) <= budget]
            best = min(fitting, key=losses.__getitem__, default=None)
            if best is not None and best not in tried:
                return Proposal(best, seed=state.seed, origin=PROMOTED_ORIGIN)
        return None

    def is_evolving(self, state: StudyState) -> bool:
        return state.spent < self.evolution * state.evaluations

    def evolve(self, state: StudyState, steps: GuidedSteps, losses: Mapping[Plan, float]) -> Proposal | None:
        """The next plan to evaluate at the lowest fidelity: first a generation of warm starts, then offspring."""
        proxy = state.fidelities[0]
        budget = rotate_budgets(state)[0]
        warm = sum(t.proposal.origin == WARM_START_ORIGIN and t.fidelity == proxy for t in state.trials)
        generation = len(select_trials(state, proxy)) // self.population
        parents = (
            select_survivors(state, losses, self.population, generation) if warm >= self.population else None
        )

        def draw(_: int, rng: np.random.Generator) -> tuple[Plan, str]:
            if parents is not None:
                return state.space.decode(self.breed(steps, parents, budget, rng)), "offspring"
            code = steps.jitter_warm_start(budget, rng) if warm else steps.make_warm_start(budget)
            return state.space.decode(code), WARM_START_ORIGIN

        return next(iter(propose_new(state, 1, draw, fidelity=proxy)), None)

    def refine(self, state: StudyState, steps: GuidedSteps, origin: str) -> Proposal | None:
        """The candidate with the largest expected improvement under the budget in turn, at full fidelity.

        If no candidate is new under that budget, the next one is served; if none is under any, a warm start. The
        incumbent is the lowest posterior mean of the known plans within the budget, so that no lucky draw sets it.
        """
        space = state.space
        model = fit_matern(state, steps)
        turn = rotate_budgets(state)
        tried = space.encode_many(t.plan for t in state.trials if t.fidelity >= 1.0 or t.status == "failed")
        for budget in turn:
            if model is None:
                break
            fitting = replace(model, codes=model.codes[space.memory.bytes(model.codes) <= budget])
            if not len(fitting.codes):
                continue
            incumbent = fitting.predict(fitting.codes)[0].min()

            def score(codes: np.ndarray, fitting: PlanGP = fitting, best: float = incumbent) -> np.ndarray:
                return log_expected_improvement(*fitting.predict(codes), np.asarray(best))

            codes = rank_codes(
                space, score, self.list_candidates(state, steps, fitting, budget), tried, budget
            )
            if len(codes):
                return Proposal(space.decode(codes[0]), seed=state.seed, origin=f"{origin} {budget}")
        starts = propose_new(
            state, 1, lambda _, rng: (space.decode(steps.jitter_warm_start(turn[0], rng)), WARM_START_ORIGIN)
        )
        return next(iter(starts), None)


def fit_matern(state: StudyState, steps: GuidedSteps) -> PlanGP | None:
    """A Matern-5/2 GP over places and coverage, of every plan once, pending ones fantasized.

    A plan evaluated in full counts with its full loss; one known only at a lower fidelity counts with that loss
    moved by the mean gap between the two, over the plans that have both, and not at all if none has.
    """
    known = average_losses(state.full)
    for fidelity in reversed(state.fidelities[:-1]):
        low = average_losses([t for t in state.done if t.fidelity == fidelity])
        gaps = [known[plan] - low[plan] for plan in low if plan in known]
        if gaps:
            known |= {plan: loss + float(np.mean(gaps)) for plan, loss in low.items() if plan not in known}
    pending = [t.plan for t in state.pending]
    return fit_plan_gp(state.space, known, pending, steps.encode, seed=state.seed)


def select_trials(state: StudyState, fidelity: float) -> list[Trial]:
    return [t for t in state.trials if t.fidelity == fidelity]


def derive_importance(space: SearchSpace, sensitivities: Sensitivities | None) -> np.ndarray:
    """float (2, G), within [0, 1]: the importance of the bits and the rank of every group, 1 for the most important.

    Bits by the damage of the smallest bit-width, ranks by the gain of the largest; all equal if that is 0.
    """
    sensitivities = sensitivities or make_flat_sensitivities(space)
    rows = np.arange(len(space))
    damage = sensitivities.bits_damage[rows, space.bits_allowed.argmax(1)]
    gain = sensitivities.rank_gain[rows, len(space.ranks) - 1 - space.ranks_allowed[:, ::-1].argmax(1)]
    both = np.maximum([damage, gain], 0.0)
    most = both.max(1, keepdims=True)
    return np.where(most > 0, both / np.where(most > 0, most, 1.0), 1.0)
