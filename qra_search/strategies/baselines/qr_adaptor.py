"""QR-Adaptor (arXiv 2505.03802): sensitivity-informed start, NSGA-II on proxy tuning, Bayesian refinement."""

from __future__ import annotations

import numpy as np
from pymoo.core.population import Population

from qra_search.log.state import StudyState
from qra_search.schemas import Proposal
from qra_search.strategies.base import average_losses, find_non_dominated
from qra_search.strategies.baselines.nsga2 import breed_child
from qra_search.strategies.baselines.papers import GuidedSteps, PaperStrategy, select_trials
from qra_search.surrogates.gp import PlanGP

PROMOTED = "promoted"
REFINED = "refined"


class QRAdaptorStrategy(PaperStrategy):
    """The three phases of the paper QR-Adaptor, each derived from the log.

    I. `population` plans whose bits and ranks rise with the sensitivities, jittered.
    II. NSGA-II with layer-atomic crossover and adjacent mutation, until a share of the evaluations is spent.
    III. A Matern-5/2 GP, and expected improvement over the atomic edits of its front, under the budgets in turn.

    Phases I and II use proxy tuning: the evaluator's lowest fidelity, whose losses are only ranked among
    themselves. Phase III is at full fidelity, and begins with the best plan of phase II under every budget.
    """

    name = "qr_adaptor"

    def propose_one(self, state: StudyState, steps: GuidedSteps) -> Proposal | None:
        proposal = None
        if self.is_evolving(state):
            tried = select_trials(state, state.fidelities[0])
            complete = tried[: len(tried) // self.population * self.population]
            proposal = self.evolve(state, steps, average_losses([t for t in complete if t.done]))
        return proposal or self._choose_promotion(state) or self.refine(state, steps, REFINED)

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
                return Proposal(best, seed=state.seed, origin=PROMOTED)
        return None
