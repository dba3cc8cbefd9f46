"""Nevergrad's optimizers as strategies, made anew from the log for every proposal. Needs the extra `nevergrad`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.plugins import did_you_mean
from qra_search.strategies.base import Strategy, mean_losses
from qra_search.strategies.baselines.proposing import Places, budgets_in_turn, fresh_plans, optional_package, quiet
from qra_search.strategies.plan_codec import PlanCodec

ASKED = 3
"""Times that an optimizer is asked for one proposal before a random plan takes its place: some take seconds each time,
and asked for a plan that is known they may name it again and again."""


class NevergradStrategy(Strategy):
    """An optimizer of nevergrad is asked for the plan of the lowest loss under the budget in turn.

    It knows nothing of bytes: it is told the full evaluations that fit this budget, whoever proposed them, and what it
    asks for is brought under the budget by random steps down. Without a named budget those of `StudyState.budgets`
    take turns.

    Args:
        optimizer: a name of `nevergrad.optimizers.registry`; `NGOpt` chooses one by the size of the
    """

    name = "nevergrad"

    def __init__(self, optimizer: str = "NGOpt"):
        registry = _nevergrad().optimizers.registry
        if optimizer not in registry:
            near = did_you_mean(optimizer, registry)
            raise ValueError(f"unknown nevergrad optimizer {optimizer!r}: {near}NGOpt chooses one by itself")
        self.optimizer = optimizer

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        codec = PlanCodec(state.space)
        places = Places(codec)
        running: dict[int, Iterator[np.ndarray]] = {}
        asked = dict.fromkeys(range(n), 0)

        def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            if not len(places.free):
                return codec.allowed.argmax(1), self.name
            budget = budgets_in_turn(state, offset)[0]
            if budget not in running:
                fitting = [t for t in state.full if state.space.memory_bytes(t.plan) <= budget]
                seed = int(state.rng().integers(1 << 31))
                points, losses = told(codec, places, fitting)
                running[budget] = self.suggestions(places.counts, points, losses, seed, state.evaluations)
            asked[offset] += 1
            if asked[offset] > ASKED:
                return codec.repair(codec.random(rng), budget, rng), "random"
            return codec.repair(places.row(next(running[budget])), budget, rng), self.name

        return fresh_plans(state, n, draw)

    def suggestions(
        self, counts: np.ndarray, points: np.ndarray, losses: np.ndarray, seed: int, evaluations: float
    ) -> Iterator[np.ndarray]:
        """int (V,) each: what the optimizer asks for, without end.

        Args:
            counts: int (V,): variable v goes from 0 to counts[v] - 1, in order of bits or rank.
            points, losses: int (N, V) and float (N,): what was evaluated, each point once.
            evaluations: how many the whole study may spend.
        """
        ng = _nevergrad()
        # Variables of as many values are one choice with repetitions: with one for each of 420, a trial takes 0.3 s.
        alike = {int(k): np.flatnonzero(counts == k) for k in np.unique(counts)}
        choices = {str(k): ng.p.TransitionChoice(range(k), repetitions=len(v)) for k, v in alike.items()}
        space = ng.p.Dict(**choices)
        space.random_state.seed(seed)
        with quiet():
            optimizer = ng.optimizers.registry[self.optimizer](space, budget=max(int(evaluations), 1))
            # What is suggested to NGOpt does not count for what it chose, which would begin anew at every proposal.
            if isinstance(optimizer, ng.optimization.optimizerlib.NGOptBase):
                optimizer = optimizer.optim
            # Evolution takes its parents in the order of telling: a rebuilt one would always take the same first.
            for i in np.random.default_rng(seed).permutation(len(losses)):
                optimizer.suggest({str(k): tuple(points[i, v].tolist()) for k, v in alike.items()})
                self._tell(optimizer, optimizer.ask(), float(losses[i]))
        while True:
            with quiet():
                value = optimizer.ask().value
            point = np.zeros(len(counts), int)
            for k, variables in alike.items():
                point[variables] = value[str(k)]
            yield point

    def _tell(self, optimizer: Any, candidate: Any, loss: float) -> None:
        try:
            optimizer.tell(candidate, loss)
        except _nevergrad().errors.TellNotAskedNotSupportedError:
            raise ValueError(
                f"nevergrad's {self.optimizer} takes only points that it asked for, and cannot be rebuilt from a log: "
                "choose another optimizer, such as NGOpt"
            ) from None


def told(codec: PlanCodec, places: Places, trials: Sequence[Trial]) -> tuple[np.ndarray, np.ndarray]:
    """The plans of finished trials as places (N, V), each once, and their mean losses (N,)."""
    losses = mean_losses(trials)
    rows = codec.encode(list(losses)) if losses else np.zeros((0, codec.variables), int)
    return places.of(rows), np.array(list(losses.values()))


def _nevergrad() -> Any:
    return optional_package("nevergrad", "nevergrad's optimizers")
