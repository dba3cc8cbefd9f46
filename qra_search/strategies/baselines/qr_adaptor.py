"""QR-Adaptor (arXiv 2505.03802): sensitivity-informed start, NSGA-II on proxy tuning, Bayesian refinement."""

from __future__ import annotations

import numpy as np
from pymoo.core.population import Population

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.space.pareto import non_dominated
from qra_search.space.space import Plan
from qra_search.space.steps import Steps
from qra_search.strategies.base import Strategy, mean_losses
from qra_search.strategies.baselines.belief import Belief
from qra_search.strategies.baselines.nsga2 import breed_child, check_population, select_survivors
from qra_search.strategies.baselines.papers import (
    atomic_edits,
    check_share,
    evolve,
    measure_importance,
    refine,
    tried_in_full,
)
from qra_search.strategies.baselines.proposing import propose_one_by_one

POPULATION = 12
EVOLUTION_SHARE = 0.5
OFFSPRING, PROMOTED, REFINED = "offspring", "promoted", "refined"


class QRAdaptorStrategy(Strategy):
    """The three phases of the paper QR-Adaptor, each derived from the log.

    I. `population` plans whose bits and ranks rise with the sensitivities, jittered.
    II. NSGA-II with layer-atomic crossover and adjacent mutation, until a share of the evaluations is spent.
    III. A Matern-5/2 GP, and expected improvement over the atomic edits of its front, under the budgets in turn.

    Phases I and II use proxy tuning: the evaluator's lowest fidelity, whose losses are only ranked among
    themselves. Phase III is at full fidelity, and begins with the best plan of phase II under every budget.

    Args:
        population: plans of phase I, and of a generation of phase II.
        evolution: share of the evaluations that phases I and II may spend.
    """

    name = "qr_adaptor"

    def __init__(self, population: int = POPULATION, evolution: float = EVOLUTION_SHARE):
        check_share("evolution", evolution)
        self.population, self.evolution = check_population(population), evolution

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        return propose_one_by_one(state, n, self._next)

    def _next(self, state: StudyState) -> Proposal | None:
        importance, steps = measure_importance(state.space, state.sensitivities), Steps(state.space)

        def parents(before: list[Trial], generation: int) -> Population | None:
            losses = mean_losses([t for t in before if t.done])
            return select_survivors(state, losses, self.population, generation)

        def breed(parents: Population, budget: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            return breed_child(steps, parents, budget, rng), OFFSPRING

        if state.spent < self.evolution * state.evaluations:
            proposal = evolve(state, importance, self.population, parents, breed)
            if proposal is not None:
                return proposal
        promotion = self._promotion(state)
        if promotion is not None:
            return Proposal(promotion, seed=state.seed, origin=PROMOTED)
        return refine(state, importance, front_edits, lambda budget: REFINED)

    def _promotion(self, state: StudyState) -> Plan | None:
        """A plan that is the best of phase II under some budget, and was not yet evaluated in full."""
        proxy, tried = state.fidelities[0], tried_in_full(state)
        losses = mean_losses([t for t in state.done if t.fidelity == proxy < 1.0])
        for budget in state.budgets:
            fitting = [plan for plan in losses if state.space.memory_bytes(plan) <= budget]
            best = min(fitting, key=losses.__getitem__, default=None)
            if best is not None and best not in tried:
                return best
        return None


def front_edits(belief: Belief, fitting: np.ndarray, budget: int) -> np.ndarray:
    """int (M, 2, G): the atomic edits of the front, by posterior mean, of the fitting plans."""
    codes = belief.codes[fitting]
    front = non_dominated(belief.mean(codes), belief.space.memory.bytes(codes))
    return np.concatenate([atomic_edits(Steps(belief.space), code) for code in codes[front]])
