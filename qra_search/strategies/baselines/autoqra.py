"""AutoQRA (arXiv 2602.22268): multi-fidelity evolution with a promotion model, then trust-region Bayesian search."""

from __future__ import annotations

import numpy as np
from pymoo.core.population import Population
from scipy.stats import spearmanr

from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal
from qra_search.strategies import average_losses
from qra_search.strategies.baselines.nsga2 import CROSSOVER_CHANCE, cross_parents, mutate
from qra_search.strategies.baselines.qr_adaptor import EPSILON, GuidedSteps, QRAdaptorStrategy, select_trials
from qra_search.strategies.simple import rotate_budgets
from qra_search.surrogates.gp import PlanGP, fit_loss_gp

PROMOTED_SHARE = 1 / 3
"""Share of a generation that is promoted to full fidelity."""
MIN_PAIRS = 8
"""Plans seen at both fidelities that the promotion model needs."""
MIN_SCREENING_PAIRS = 6
MIN_RANK_CORRELATION = 0.5
"""Rank correlation of cheap and full losses, over so many plans seen at both, below which screening ends."""
IMPORTANCE_EXPONENT = 1.5
"""How strongly mutation prefers important groups: chance in proportion to importance^IMPORTANCE_EXPONENT."""
COUPLED_CHANCE = 0.3
"""Chance of a mutation that raises one choice and pays for it with others."""
INITIAL_RADIUS = 4
MIN_RADIUS = 1
MAX_RADIUS = 16
SUCCESSES_TO_GROW = 2
FAILURES_TO_SHRINK = 3
"""Refinements in a row, under one budget, after which its trust region doubles or halves."""
REGION_DRAWS = 256
PROMOTED_ORIGIN = "promoted"
REFINED_ORIGIN = "trust region"


class AutoQRAStrategy(QRAdaptorStrategy):
    """The two stages of the paper AutoQRA, each derived from the log.

    1. Evolution from a warm start by importances: parents by rank and crowding, layer-atomic crossover,
       importance-guided or budget-coupled mutation, deterministic repair. Offspring are evaluated at the lowest
       fidelity; of every generation, those that the promotion model thinks best are promoted to a full evaluation.
       Once promoted plans show that the lowest fidelity does not rank them as full evaluations do, stage 1 ends.
    2. Bayesian search in a trust region of atomic edits around the best plan under each budget in turn: a
       Matern-5/2 GP and expected improvement. The region grows after successes and shrinks after failures.
    """

    name = "autoqra"

    def propose_one(self, state: StudyState, steps: GuidedSteps) -> Proposal | None:
        proposal = None
        if self.is_evolving(state) and is_screening_useful(state):
            losses = predict_losses(state, steps)
            proposal = self._choose_screened(state, losses) or self.evolve(state, steps, losses)
        return proposal or self.refine(state, steps, REFINED_ORIGIN)

    def breed(
        self, steps: GuidedSteps, parents: Population, budget: int, rng: np.random.Generator
    ) -> np.ndarray:
        child = mutate_by_importance(steps, cross_parents(parents, CROSSOVER_CHANCE, rng), budget, rng)
        return steps.repair_by_importance(child, budget)

    def list_candidates(
        self, state: StudyState, steps: GuidedSteps, fitting: PlanGP, budget: int
    ) -> np.ndarray:
        center = fitting.codes[fitting.predict(fitting.codes)[0].argmin()]
        return sample_trust_region(steps, center, compute_trust_radius(state, budget), budget, state.rng())

    def _choose_screened(self, state: StudyState, losses: dict[Plan, float]) -> Proposal | None:
        """The plan to evaluate in full next, if a finished generation still has promotions due."""
        screened = {t.plan for t in select_trials(state, state.fidelities[0])}
        full = {t.plan for t in select_trials(state, 1.0)}
        each = max(1, round(PROMOTED_SHARE * self.population))
        if each * (len(screened) // self.population) <= len(screened & full):
            return None
        for budget in rotate_budgets(state):
            fitting = [p for p in losses if p not in full and state.space.memory_bytes(p) <= budget]
            if fitting:
                return Proposal(min(fitting, key=losses.__getitem__), seed=state.seed, origin=PROMOTED_ORIGIN)
        return None


def predict_losses(state: StudyState, steps: GuidedSteps) -> dict[Plan, float]:
    """Losses at full fidelity, known or predicted, of the plans evaluated at the lowest.

    The promotion model is a Gaussian process over a plan's coverage, bits and ranks, beside a line in the cheap loss;
    before it has enough pairs, the cheap loss is moved by the mean gap between the two.
    """
    full = average_losses(state.full)
    space = state.space
    cheap = average_losses([t for t in state.done if t.fidelity == state.fidelities[0]])
    both = [plan for plan in cheap if plan in full]
    if not cheap or len(both) == len(cheap):
        return {plan: full[plan] for plan in both}

    def describe(plans: list[Plan]) -> np.ndarray:
        codes = space.encode_many(plans)
        bits = [(codes[:, 0] == k).mean(1) for k in range(len(space.bits))]
        ranks = [(codes[:, 1] == k).mean(1) for k in range(len(space.ranks))]
        proxy = [cheap[plan] for plan in plans]
        return np.column_stack([steps.compute_coverage(codes), *bits, *ranks, proxy])

    known = np.array([full[plan] for plan in both])
    if len(both) >= MIN_PAIRS:
        predicted, _ = fit_loss_gp(describe(both), known, seed=state.seed).predict(describe(list(cheap)))
    else:
        gap = float(np.mean(known - [cheap[plan] for plan in both])) if both else 0.0
        predicted = np.array(list(cheap.values())) + gap
    return dict(zip(cheap, predicted.tolist(), strict=True)) | {plan: full[plan] for plan in both}


def mutate_by_importance(
    steps: GuidedSteps,
    code: np.ndarray,
    budget: int,
    rng: np.random.Generator,
    coupled: float = COUPLED_CHANCE,
) -> np.ndarray:
    """int (2, G): the code with one step of a variable drawn in proportion to importance^IMPORTANCE_EXPONENT.

    The step goes up with a chance equal to the variable's importance, else down. With the chance `coupled` it goes up,
    and the code is brought back under the budget by the steps down that matter least elsewhere.
    """
    up = steps.increase_choices(code)
    down = steps.decrease_choices(code)
    raising = rng.random() < coupled and (up != code).any()
    preference = np.maximum(steps.importance, EPSILON) ** IMPORTANCE_EXPONENT
    chance = (((up != code) if raising else (up != code) | (down != code)) * preference).ravel()
    if not chance.any():
        return code.copy()
    at = int(rng.choice(code.size, p=chance / chance.sum()))
    upward = raising or rng.random() < steps.importance.flat[at]
    first, other = (up, down) if upward else (down, up)
    mutated = code.copy()
    mutated.flat[at] = first.flat[at] if first.flat[at] != code.flat[at] else other.flat[at]
    return steps.repair_by_importance(mutated, budget, keep=at) if raising else mutated


def is_screening_useful(state: StudyState) -> bool:
    """False once plans seen at both fidelities show that the lowest does not rank them as the full one does."""
    full = average_losses(state.full)
    cheap = average_losses([t for t in state.done if t.fidelity == state.fidelities[0] < 1.0])
    both = [plan for plan in full if plan in cheap]
    if len(both) < MIN_SCREENING_PAIRS:
        return True
    return bool(
        spearmanr([full[k] for k in both], [cheap[k] for k in both]).statistic >= MIN_RANK_CORRELATION
    )


def compute_trust_radius(state: StudyState, budget: int) -> int:
    """Edits that the trust region of a budget spans: replayed from the refinements that the log holds for it."""
    radius = INITIAL_RADIUS
    streak = 0
    best = np.inf
    for trial in state.full:
        if state.space.memory_bytes(trial.plan) > budget:
            continue
        if trial.proposal.origin == f"{REFINED_ORIGIN} {budget}":
            streak = max(streak, 0) + 1 if trial.loss < best else min(streak, 0) - 1
            if streak >= SUCCESSES_TO_GROW:
                radius = min(2 * radius, MAX_RADIUS)
                streak = 0
            elif streak <= -FAILURES_TO_SHRINK:
                radius = max(radius // 2, MIN_RADIUS)
                streak = 0
        best = min(best, trial.loss)
    return radius


def sample_trust_region(
    steps: GuidedSteps, center: np.ndarray, radius: int, budget: int, rng: np.random.Generator
) -> np.ndarray:
    """int (M, 2, G): codes within `radius` single steps of the center and within the budget; all atomic edits too."""
    codes = []
    for _ in range(REGION_DRAWS if radius > 1 else 0):
        code = center
        for _ in range(int(rng.integers(1, radius + 1))):
            code = mutate(steps, code, 0.0, rng)
        code = steps.repair(code, budget, rng)
        if np.abs(code - center).sum() <= radius:
            codes.append(code)
    return np.concatenate(
        [steps.list_atomic_edits(center), np.array(codes, dtype=int).reshape(-1, *center.shape)]
    )
