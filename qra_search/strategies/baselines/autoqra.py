"""AutoQRA (arXiv 2602.22268): multi-fidelity evolution with a promotion model, then trust-region Bayesian search."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from pymoo.core.population import Population
from scipy.stats import spearmanr

from qra_search.allocate.table import additive_table, table_losses
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.space.steps import Steps
from qra_search.strategies.base import Strategy, mean_losses
from qra_search.strategies.baselines.belief import Belief
from qra_search.strategies.baselines.nsga2 import CROSSOVER, check_population, mate, mutate, select_survivors
from qra_search.strategies.baselines.papers import (
    EPSILON,
    atomic_edits,
    check_share,
    coverage_encoding,
    evolve,
    measure_importance,
    refine,
    repair_by_importance,
)
from qra_search.strategies.baselines.proposing import budgets_in_turn, propose_one_by_one
from qra_search.surrogates.promotion import PromotionModel, fit_promotion

POPULATION = 12
PROMOTED_SHARE = 1 / 3
"""Of a generation, promoted to full fidelity."""
EVOLUTION_SHARE = 0.5
SCREENED = 16
"""Offspring that the performance model chooses one from, if there is no lower fidelity to screen them with."""
FEWEST_PAIRS, LEAST_AGREEMENT = 6, 0.5
"""Rank correlation of cheap and full losses, over so many plans seen at both, below which screening ends."""
GAMMA = 1.5
"""How strongly mutation prefers important groups: chance in proportion to importance^GAMMA."""
COUPLED = 0.3
"""Chance of a mutation that raises one choice and pays for it with others."""
RADIUS, LEAST_RADIUS, MOST_RADIUS = 4, 1, 16
SUCCESSES, FAILURES = 2, 3
"""Refinements in a row, under one budget, after which its trust region doubles or halves."""
REGION_DRAWS = 256
EVOLVED, PROMOTED, REFINED = "evolved", "promoted", "trust region"


class AutoQRAStrategy(Strategy):
    """The two stages of the paper AutoQRA, each derived from the log.

    1. Evolution from a warm start by importances: parents by rank and crowding, layer-atomic crossover,
       importance-guided or budget-coupled mutation, deterministic repair. Offspring are evaluated at the lowest
       fidelity; of every generation, those that the promotion model thinks best are promoted to a full evaluation.
       Once promoted plans show that the lowest fidelity does not rank them as full evaluations do, stage 1 ends.
       Where the evaluator has one fidelity, the additive loss is the cheap score, and the promotion model picks which
       of several offspring is evaluated.
    2. Bayesian search in a trust region of atomic edits around the best plan under each budget in turn: a
       Matern-5/2 GP and expected improvement. The region grows after successes and shrinks after failures.

    Args:
        population: plans of a generation.
        evolution: share of the evaluations that stage 1 may spend.
    """

    name = "autoqra"

    def __init__(self, population: int = POPULATION, evolution: float = EVOLUTION_SHARE):
        check_share("evolution", evolution)
        self.population, self.evolution = check_population(population), evolution

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        return propose_one_by_one(state, n, self._next)

    def _next(self, state: StudyState) -> Proposal | None:
        importance, steps, rng = (
            measure_importance(state.space, state.sensitivities),
            Steps(state.space),
            state.rng(),
        )
        proposal = None
        if state.spent < self.evolution * state.evaluations and screening_helps(state):
            scores = Scores(state, importance)
            proposal = self._promotion(state, scores) or self._evolve(state, importance, scores)

        def region(belief: Belief, fitting: np.ndarray, budget: int) -> np.ndarray:
            center = belief.codes[fitting[belief.mean(belief.codes[fitting]).argmin()]]
            return trust_region(steps, center, trust_radius(state, budget), budget, rng)

        return proposal or refine(state, importance, region, lambda budget: f"{REFINED} {budget}")

    def _evolve(self, state: StudyState, importance: np.ndarray, scores: Scores) -> Proposal | None:
        steps, litter = Steps(state.space), SCREENED if state.fidelities[0] >= 1.0 else 1

        def breed(parents: Population, budget: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            children = []
            for _ in range(litter):
                pair = mate(parents, CROSSOVER, rng)
                mutated = [mutate_by_importance(steps, code, budget, importance, rng) for code in pair]
                rng.random(2)  # as in `breed_child`
                children.append(repair_by_importance(steps, mutated[0], budget, importance))
            return scores.best(np.array(children)), EVOLVED

        return evolve(state, importance, self.population, lambda _, g: scores.parents(self.population, g), breed)

    def _promotion(self, state: StudyState, scores: Scores) -> Proposal | None:
        """The plan to evaluate in full next, if a finished generation still has promotions due."""
        proxy = state.fidelities[0]
        if proxy >= 1.0:
            return None
        screened = {t.plan for t in state.trials if t.fidelity == proxy}
        full = {t.plan for t in state.trials if t.fidelity >= 1.0}
        each = max(1, round(PROMOTED_SHARE * self.population))
        due = each * (len(screened) // self.population) - len(screened & full)
        waiting = [p for p in scores.cheap if p not in full] if due > 0 else []
        if not waiting:
            return None
        codes = state.space.encode_many(waiting)
        predicted, sizes = scores.predict(codes), state.memory.bytes(codes)
        for budget in budgets_in_turn(state):
            fitting = np.flatnonzero(sizes <= budget)
            if len(fitting):
                plan = waiting[int(fitting[predicted[fitting].argmin()])]
                return Proposal(plan, seed=state.seed, origin=PROMOTED)
        return None


class Scores:
    """Losses at full fidelity, known or predicted, of every plan that was evaluated; cheap and full never mixed.

    The cheap score of a plan is its loss at the lowest fidelity or, if there is only one, the additive loss of the
    sensitivities. Full losses are predicted from it by the promotion model; before that has enough pairs, by adding the
    mean gap between the two.
    """

    def __init__(self, state: StudyState, importance: np.ndarray):
        self.state = state
        self._encode = coverage_encoding(state.space, importance)
        self._table = additive_table(state.space, state.sensitivities)
        proxy = state.fidelities[0]
        self._screening = proxy < 1.0
        self.full = mean_losses(state.full)
        self.cheap = mean_losses([t for t in state.done if t.fidelity == proxy < 1.0])
        both = [p for p in self.full if not self._screening or p in self.cheap]
        features, target = self._features(state.space.encode_many(both)), np.array([self.full[p] for p in both])
        self._gap = float((target - features[:, 0]).mean()) if len(both) else 0.0
        self._pairs = features, target

    @cached_property
    def _model(self) -> PromotionModel | None:
        return fit_promotion(*self._pairs, seed=self.state.seed)

    def predict(self, codes: np.ndarray) -> np.ndarray:
        """Full loss (M,) of plans (M, 2, G) that have a cheap score."""
        features = self._features(codes)
        return features[:, 0] + self._gap if self._model is None else self._model.predict(features)

    def parents(self, size: int, generation: int) -> Population | None:
        """Survivors among the evaluated plans by full loss, known or else predicted; None if too few."""
        plans = list(self.cheap if self._screening else self.full)
        predicted = self.predict(self.state.space.encode_many(plans))
        losses = {p: self.full.get(p, float(m)) for p, m in zip(plans, predicted, strict=True)}
        return select_survivors(self.state, losses, size, generation)

    def best(self, codes: np.ndarray) -> np.ndarray:
        """The unseen plan with the lowest predicted loss; the first one where nothing can be predicted."""
        unseen = [code for code in codes if self.state.space.decode(code) not in self.state.seen]
        if len(unseen) < 2 or self._model is None:
            return unseen[0] if unseen else codes[0]
        return unseen[int(self.predict(np.array(unseen)).argmin())]

    def _features(self, codes: np.ndarray) -> np.ndarray:
        """float (M, D): cheap score, share of the largest bytes, coverages, and histograms of bits and ranks."""
        space = self.state.space
        if self._screening:
            cheap = np.array([self.cheap[space.decode(code)] for code in codes])
        else:
            cheap = table_losses(self._table, codes)
        bits = [(codes[:, 0] == k).mean(1) for k in range(len(space.bits))]
        ranks = [(codes[:, 1] == k).mean(1) for k in range(len(space.ranks))]
        coverage = self._encode(codes)[:, -2:]
        return np.column_stack([cheap, space.memory.bytes(codes) / space.memory.maximum, coverage, *bits, *ranks])


def mutate_by_importance(
    steps: Steps,
    code: np.ndarray,
    budget: int,
    importance: np.ndarray,
    rng: np.random.Generator,
    coupled: float = COUPLED,
) -> np.ndarray:
    """int (2, G): the code with one step of a variable drawn in proportion to importance^GAMMA.

    The step goes up with a chance equal to the variable's importance, else down. With the chance `coupled` it goes up,
    and the code is brought back under the budget by the steps down that matter least elsewhere.
    """
    up, down = steps.up(code), steps.down(code)
    raising = rng.random() < coupled and (up != code).any()
    preference = np.maximum(importance, EPSILON) ** GAMMA
    chance = (((up != code) if raising else (up != code) | (down != code)) * preference).ravel()
    if not chance.any():
        return code.copy()
    at = int(rng.choice(code.size, p=chance / chance.sum()))
    upward = raising or rng.random() < importance.flat[at]
    first, other = (up, down) if upward else (down, up)
    mutated = code.copy()
    mutated.flat[at] = first.flat[at] if first.flat[at] != code.flat[at] else other.flat[at]
    return repair_by_importance(steps, mutated, budget, importance, keep=at) if raising else mutated


def screening_helps(state: StudyState) -> bool:
    """False once plans seen at both fidelities show that the lowest does not rank them as the full one does."""
    full = mean_losses(state.full)
    cheap = mean_losses([t for t in state.done if t.fidelity == state.fidelities[0] < 1.0])
    both = [plan for plan in full if plan in cheap]
    if len(both) < FEWEST_PAIRS:
        return True
    return bool(spearmanr([full[k] for k in both], [cheap[k] for k in both]).statistic >= LEAST_AGREEMENT)


def trust_radius(state: StudyState, budget: int) -> int:
    """Edits that the trust region of a budget spans: replayed from the refinements that the log holds for it."""
    radius, streak = RADIUS, 0
    best = np.inf
    for trial in state.trials:
        if not trial.done or trial.fidelity < 1.0 or state.space.memory_bytes(trial.plan) > budget:
            continue
        if trial.proposal.origin == f"{REFINED} {budget}":
            better = trial.loss < best
            streak = max(streak, 0) + 1 if better else min(streak, 0) - 1
            if streak >= SUCCESSES:
                radius, streak = min(2 * radius, MOST_RADIUS), 0
            elif streak <= -FAILURES:
                radius, streak = max(radius // 2, LEAST_RADIUS), 0
        best = min(best, trial.loss)
    return radius


def trust_region(steps: Steps, center: np.ndarray, radius: int, budget: int, rng: np.random.Generator) -> np.ndarray:
    """int (M, 2, G): codes within `radius` single steps of the center and within the budget; all atomic edits too."""
    drawn = [center]
    for _ in range(REGION_DRAWS if radius > 1 else 0):
        code = center
        for _ in range(int(rng.integers(1, radius + 1))):
            code = mutate(steps, code, 0.0, rng)
        drawn.append(steps.repair(code, budget, rng))
    codes = np.array(drawn)
    codes = codes[np.abs(codes - center).sum((1, 2)) <= radius]
    return np.concatenate([atomic_edits(steps, center), codes])
