"""QR-Adaptor (arXiv 2505.03802): sensitivity-informed start, NSGA-II on proxy tuning, Bayesian refinement."""

from __future__ import annotations

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.space.pareto import non_dominated
from qra_search.space.space import Plan
from qra_search.strategies.base import Strategy
from qra_search.strategies.evolution.edits import Levels, fresh_plans, one_by_one
from qra_search.strategies.evolution.importance import JITTER, Importance, jittered_start
from qra_search.strategies.evolution.survival import mean_losses
from qra_search.strategies.gp.belief import Belief
from qra_search.strategies.gp.refine import atomic_edits, best_improvement, budgets_in_turn, matern_belief
from qra_search.strategies.nsga2 import CROSSOVER, check_population, child_of, parents_of

POPULATION = 12
EVOLUTION_SHARE = 0.5
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
        return one_by_one(state, n, self._next)

    def _next(self, state: StudyState) -> Proposal | None:
        importance = Importance.of(state.space, state.prior)
        evolving = state.spent < self.evolution * state.evaluations
        proposal = self._evolve(state, importance) if evolving else None
        return proposal or self._refine(state, importance)

    def _evolve(self, state: StudyState, importance: Importance) -> Proposal | None:
        """Phases I and II."""
        levels, proxy, budget = Levels(state.space), state.fidelities[0], budgets_in_turn(state)[0]
        tuned = [t for t in state.trials if t.fidelity == proxy]
        warm = sum(t.proposal.origin == WARM_START for t in tuned)
        generation = len(tuned) // self.population
        before = [t for t in tuned[: generation * self.population] if t.done]
        parents = parents_of(state, before, self.population, generation) if warm >= self.population else None

        def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            if parents is None:
                return jittered_start(levels, importance, budget, rng, JITTER if warm else 0.0), WARM_START
            return child_of(levels, parents, budget, rng, self.crossover, self.mutation), OFFSPRING

        return next(iter(fresh_plans(state, 1, draw, fidelity=proxy)), None)

    def _refine(self, state: StudyState, importance: Importance) -> Proposal | None:
        """Phase III."""
        levels = Levels(state.space)
        tried = {t.plan.key for t in state.trials if t.fidelity >= 1.0 or t.status == "failed"}
        promotion = self._promotion(state, levels, tried)
        if promotion is not None:
            return Proposal(promotion, seed=state.seed, origin=PROMOTED)
        belief = matern_belief(state, importance)
        found = None if belief is None else best_improvement(state, belief, tried, front_edits)
        if found is not None:
            return Proposal(levels.decode(found[0]), seed=state.seed, origin=REFINED)
        budget = budgets_in_turn(state)[0]
        starts = fresh_plans(state, 1, lambda _, rng: (jittered_start(levels, importance, budget, rng), WARM_START))
        return next(iter(starts), None)

    def _promotion(self, state: StudyState, levels: Levels, tried: set[str]) -> Plan | None:
        """A plan that is the best of phase II under some budget, and was not yet evaluated in full."""
        proxy = state.fidelities[0]
        plans, losses = mean_losses([t for t in state.done if t.fidelity == proxy and proxy < 1.0])
        sizes = np.array([state.space.memory_bytes(plan) for plan in plans], dtype=np.int64)
        for budget in state.budgets:
            fitting = np.flatnonzero(sizes <= budget)
            if len(fitting):
                best = plans[int(fitting[losses[fitting].argmin()])]
                if best.key not in tried:
                    return best
        return None


def front_edits(belief: Belief, fitting: np.ndarray, budget: int) -> np.ndarray:
    """int (M, 2 G): the atomic edits of the front, by posterior mean, of the fitting plans."""
    rows = belief.rows[fitting]
    front = non_dominated(belief.mean(rows), belief.levels.bytes(rows))
    return np.concatenate([atomic_edits(belief.levels, row) for row in rows[front]])
