"""Optuna's samplers as strategies, made anew from the trial log for every proposal. Needs the extra `optuna`."""

from __future__ import annotations

from typing import Any

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.plugins import unknown_message
from qra_search.strategies.base import Strategy
from qra_search.strategies.baselines.proposing import Places, budget_in_turn, fresh_plans, optional_package, quiet
from qra_search.strategies.plan_codec import PlanCodec

SAMPLERS = {
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "random": "RandomSampler",
    "tpe": "TPESampler",
}
"""CMA-ES is not among them: it keeps its optimizer in private attributes of the trials, which our log does not hold."""
DEFAULTS: dict[str, dict[str, Any]] = {"tpe": {"constant_liar": True}}
STATES = {"done": "COMPLETE", "failed": "FAIL", "running": "RUNNING"}


class OptunaStrategy(Strategy):
    """An Optuna study over the choices of every group, made anew from the log, is asked for the next plan.

    One named budget: the loss alone is minimised. Several or none: loss and exact bytes are two objectives. What the
    sampler asks for is brought under the budget in turn by random steps down, so that it obeys the limit, and the log,
    and so the sampler, knows the repaired plan.

    Args:
        sampler: one of `SAMPLERS`.
        options: of the sampler's class, without its seed.
    """

    name = "optuna"

    def __init__(self, sampler: str = "tpe", **options: Any):
        if sampler not in SAMPLERS:
            raise ValueError(unknown_message("Optuna sampler", sampler, SAMPLERS))
        self.sampler, self.options = sampler, options
        _optuna()

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        codec = PlanCodec(state.space)
        places = Places(codec)
        space = _distributions(places)
        with quiet():
            study = self.study(state)

            def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
                asked = study.ask(space).params
                row = places.row(np.array([asked[name] for name in space], int))
                return codec.repair(row, budget_in_turn(state, offset), rng), self.sampler

            return fresh_plans(state, n, draw)

    def study(self, state: StudyState) -> Any:
        """An Optuna study that holds the log."""
        optuna, codec = _optuna(), PlanCodec(state.space)
        alone = len(state.memory_budgets) == 1
        seed = int(state.rng().integers(1 << 31))
        options = DEFAULTS.get(self.sampler, {}) | self.options
        sampler = getattr(optuna.samplers, SAMPLERS[self.sampler])(seed=seed, **options)
        study = optuna.create_study(directions=["minimize"] * (1 if alone else 2), sampler=sampler)
        places = Places(codec)
        space = _distributions(places)
        trials = [t for t in state.trials if t.fidelity >= 1.0]
        # Generations of the genetic samplers are attributes of running trials, set as those are sampled.
        genetic = hasattr(sampler, "get_trial_generation")
        for trial in trials:
            size = state.space.memory_bytes(trial.plan)
            values = None if not trial.done else [trial.loss] if alone else [trial.loss, float(size)]
            status = getattr(optuna.trial.TrialState, STATES[trial.status])
            point = places.of(codec.encode([trial.plan]))[0]
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.RUNNING if genetic else status,
                    values=None if genetic else values,
                    params=dict(zip(space, point.tolist(), strict=True)),
                    distributions=space,
                )
            )
            if genetic:
                last = study.get_trials(deepcopy=False)[-1]
                sampler.get_trial_generation(study, last)
                if trial.status != "running":
                    study.tell(last.number, values, state=status)
        return study


def _distributions(places: Places) -> dict[str, Any]:
    """One integer for each variable with a choice: its place."""
    distribution = _optuna().distributions.IntDistribution
    return {str(v): distribution(0, int(c) - 1) for v, c in zip(places.free, places.counts, strict=True)}


def _optuna() -> Any:
    return optional_package("optuna", "Optuna's samplers")
