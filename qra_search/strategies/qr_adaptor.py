"""QR-Adaptor (arXiv 2505.03802): sensitivity-informed start, NSGA-II on proxy tuning, Bayesian refinement."""

from __future__ import annotations

from typing import Any

import numpy as np

from qra_search.strategies._belief import Belief
from qra_search.strategies._importance import Importance, warm_start
from qra_search.strategies._moves import Levels, fresh_plans, mutate
from qra_search.strategies._refine import (
    atomic_edits,
    best_improvement,
    budgets_in_turn,
    matern_belief,
)
from qra_search.strategies._survival import mean_losses, non_dominated
from qra_search.strategies.base import Strategy, StudyState
from qra_search.strategies.nsga2 import CROSSOVER, check_population, child_of, parents_of
from qra_search.trials import Proposal

POPULATION = 12
EVOLUTION_SHARE = 0.5
JITTER = 0.1
"""Chance of each variable of a warm start to take one step, for diversity."""
WARM_START, OFFSPRING, PROMOTED, REFINED = "warm start", "offspring", "promoted", "refined"


class QRAdaptorStrategy(Strategy):
    """The paper's three phases, each told from the log.

    I. `population` plans whose bits and ranks rise with the prior's sensitivities, jittered.
    II. NSGA-II with layer-atomic crossover and adjacent mutation, until a share of the evaluations is spent.
    III. A Matern-5/2 GP, and expected improvement over the atomic edits of its front, under the budgets in turn.

    Phases I and II use proxy tuning: the evaluator's lowest fidelity, whose losses are only ranked among
    themselves. Phase III is at full fidelity, and begins with the best plan of phase II under every budget.

    Args:
        population: plans of phase I, and of a generation of phase II.
        evolution: share of the evaluations that phases I and II may spend.
    """

    name = "qr_adaptor"

    def __init__(
        self,
        population: int = POPULATION,
        evolution: float = EVOLUTION_SHARE,
        crossover: float = CROSSOVER,
        mutation: float | None = None,
    ):
        if not 0.0 <= evolution <= 1.0:
            raise ValueError(f"evolution is a share and must be from 0 to 1, got {evolution}")
        self.population = check_population(population)
        self.evolution, self.crossover, self.mutation = evolution, crossover, mutation

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        importance = Importance.of(state.space, state.prior)
        proxy = state.fidelities[0]
        left = self.evolution * state.evaluations - state.spent
        evolving = min(n, max(0, int(np.ceil(left / proxy))))
        early = self._evolve(state, importance, proxy, evolving)
        if len(early) < n:
            return early + self._refine(state, importance, n - len(early), early)
        return early

    # -- phases I and II -----------------------------------------------------------------------
    def _evolve(self, state: StudyState, importance: Importance, proxy: float, n: int) -> list[Proposal]:
        levels = Levels(state.space)
        tuned = [t for t in state.trials if t.fidelity == proxy]
        warm = sum(t.proposal.origin == WARM_START for t in tuned)
        parents: dict[int, Any] = {}

        def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            budget = budgets_in_turn(state, offset)[0]
            generation = (len(tuned) + offset) // self.population
            if generation not in parents:
                before = [t for t in tuned[: generation * self.population] if t.done]
                parents[generation] = parents_of(state, before, self.population, generation)
            if warm + offset < self.population or parents[generation] is None:
                row = warm_start(levels, importance, budget)
                if warm + offset > 0:
                    row = levels.repair(mutate(levels, row, JITTER, rng), budget, rng)
                return row, WARM_START
            return child_of(levels, parents[generation], budget, rng, self.crossover, self.mutation), OFFSPRING

        return fresh_plans(state, n, draw, fidelity=proxy)

    # -- phase III -----------------------------------------------------------------------------
    def _refine(self, state: StudyState, importance: Importance, n: int, early: list[Proposal]) -> list[Proposal]:
        levels = Levels(state.space)
        tried = {t.plan.key for t in state.trials if t.fidelity >= 1.0 or t.status == "failed"}
        tried |= {p.plan.key for p in early}
        rows = [(row, PROMOTED) for row in self._promotions(state, levels, tried)[:n]]
        tried |= {levels.decode(row).key for row, _ in rows}
        belief = matern_belief(state, importance)
        if belief is not None and rows:
            belief = belief.fantasize(np.array([row for row, _ in rows]))
        while belief is not None and len(rows) < n:
            budgets = budgets_in_turn(state, len(early) + len(rows))
            row = best_improvement(state, belief, budgets, tried, front_edits)
            if row is None:
                break
            rows.append((row, REFINED))
            tried.add(levels.decode(row).key)
            belief = belief.fantasize(row[None])
        proposals = [Proposal(levels.decode(row), seed=state.seed, origin=origin) for row, origin in rows]
        if len(proposals) < n:

            def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
                budget = budgets_in_turn(state, offset)[0]
                row = mutate(levels, warm_start(levels, importance, budget), JITTER, rng)
                return levels.repair(row, budget, rng), WARM_START

            proposals += fresh_plans(state, n - len(proposals), draw, seen=tried | set(state.seen))
        return proposals

    def _promotions(self, state: StudyState, levels: Levels, tried: set[str]) -> list[np.ndarray]:
        """The best plan of phase II under each budget, where it was not yet evaluated in full."""
        proxy = state.fidelities[0]
        plans, losses = mean_losses([t for t in state.done if t.fidelity == proxy and proxy < 1.0])
        if not plans:
            return []
        rows, best = levels.encode(plans), {}
        sizes = levels.bytes(rows)
        for budget in state.budgets:
            fitting = np.flatnonzero(sizes <= budget)
            if len(fitting):
                at = int(fitting[losses[fitting].argmin()])
                if plans[at].key not in tried:
                    best[plans[at].key] = rows[at]
        return list(best.values())


def front_edits(belief: Belief, fitting: np.ndarray) -> np.ndarray:
    """int (M, 2 G): the atomic edits of the front, by posterior mean, of the fitting plans."""
    rows = belief.rows[fitting]
    front = non_dominated(belief.mean(rows), belief.levels.bytes(rows))
    return np.concatenate([atomic_edits(belief.levels, row) for row in rows[front]])
