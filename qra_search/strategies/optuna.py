"""Optuna's samplers as strategies, rebuilt from the trial log for every proposal, so that peers run the same loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from qra_search.errors import install_hint
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.plugins import unknown_message
from qra_search.strategies.base import Strategy
from qra_search.strategies.evolution.edits import PlanCodec, budget_in_turn, fresh_plans

SAMPLERS = {
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "qmc": "QMCSampler",
    "random": "RandomSampler",
    "tpe": "TPESampler",
}
"""CMA-ES is not among them: it keeps its optimizer in private attributes of the trials, which no log of ours holds."""

DEFAULTS: dict[str, dict[str, Any]] = {"tpe": {"constant_liar": True}, "qmc": {"scramble": True}}


class OptunaStrategy(Strategy):
    """An Optuna study over the levels, made anew from the log, is asked for the next plan.

    One named budget: the loss alone is minimised. Several or none: loss and exact bytes are two objectives. What
    the sampler asks for is brought under the budget in turn by random steps down, so that it obeys the limit, and
    the log, and so the sampler, knows the repaired plan. Needs the extra `optuna`.

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
        levels = PlanCodec(state.space)
        with _quiet():
            study = self._study(state, levels)
            space = _distributions(levels)

            def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
                row = _row(levels, study.ask(space).params)
                return levels.repair(row, budget_in_turn(state, offset), rng), self.sampler

            return fresh_plans(state, n, draw)

    def _study(self, state: StudyState, levels: PlanCodec) -> Any:
        """An Optuna study that holds the log."""
        optuna = _optuna()
        alone = len(state.memory_budgets) == 1
        directions = ["minimize"] if alone else ["minimize", "minimize"]
        # A low-discrepancy sequence has one seed and a place in it; everything else a seed for each proposal.
        seed = state.seed if self.sampler == "qmc" else int(state.rng().integers(1 << 31))
        sampler = getattr(optuna.samplers, SAMPLERS[self.sampler])(
            seed=seed, **(DEFAULTS.get(self.sampler, {}) | self.options)
        )
        study = optuna.create_study(directions=directions, sampler=sampler)
        space = _distributions(levels)
        trials = [t for t in state.trials if t.fidelity >= 1.0]
        # Generations of the genetic samplers are attributes of running trials, set as those are sampled.
        genetic = hasattr(sampler, "get_trial_generation")
        for trial in trials if self.sampler != "qmc" else trials[:1]:
            values = (
                None
                if not trial.done
                else [trial.loss]
                if alone
                else [trial.loss, float(state.space.memory_bytes(trial.plan))]
            )
            status = {"done": "COMPLETE", "failed": "FAIL", "running": "RUNNING"}[trial.status]
            states = optuna.trial.TrialState
            study.add_trial(
                optuna.trial.create_trial(
                    state=states.RUNNING if genetic else states[status],
                    values=None if genetic else values,
                    params=_params(levels, trial),
                    distributions=space,
                )
            )
            if genetic:
                last = study.get_trials(deepcopy=False)[-1]
                sampler.get_trial_generation(study, last)
                if trial.status != "running":
                    study.tell(last.number, values, state=states[status])
        if self.sampler == "qmc":
            for _ in trials:
                study.ask(space)
        return study


def _distributions(levels: PlanCodec) -> dict[str, Any]:
    """One integer a variable with more than one allowed level: its place among them."""
    optuna = _optuna()
    counts = levels.allowed.sum(1)
    return {str(v): optuna.distributions.IntDistribution(0, int(c) - 1) for v, c in enumerate(counts) if c > 1}


def _row(levels: PlanCodec, params: dict[str, int]) -> np.ndarray:
    row = levels.allowed.argmax(1)
    for name, place in params.items():
        row[int(name)] = np.flatnonzero(levels.allowed[int(name)])[place]
    return row


def _params(levels: PlanCodec, trial: Trial) -> dict[str, int]:
    row = levels.encode([trial.plan])[0]
    places = levels.allowed.cumsum(1)[np.arange(levels.variables), row] - 1
    return {str(v): int(places[v]) for v in np.flatnonzero(levels.allowed.sum(1) > 1)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither Optuna's log of every study nor its warnings of experimental features; as before afterwards."""
    optuna = _optuna()
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ImportError(f"Optuna's samplers need the package optuna: {install_hint('optuna')}") from None
    return optuna
