"""Optimizers of other packages as strategies: made anew from the log, asked for the lowest loss under one budget."""

from __future__ import annotations

import logging
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal
from qra_search.strategies.base import Strategy, mean_losses
from qra_search.strategies.evolution.edits import PlanCodec, fresh_plans

ASKED = 3
"""Times that an optimizer is asked for one proposal before a random plan takes its place: some take seconds each time,
and asked for a plan that is known they may name it again and again."""


@dataclass(frozen=True)
class Problem:
    """What an outside optimizer is told: minimise a loss over integers.

    Attributes:
        counts: int (V,): variable v goes from 0 to counts[v] - 1, at least two values, in order of bits or rank.
        points: int (N, V): distinct points that were evaluated.
        losses: float (N,): mean loss of each.
        seed: of all its randomness.
        evaluations: how many the whole study may spend.
    """

    counts: np.ndarray
    points: np.ndarray
    losses: np.ndarray
    seed: int
    evaluations: int


class OutsideStrategy(Strategy):
    """Asks an optimizer that knows nothing of bytes for the plan of the lowest loss under the budget in turn.

    The optimizer is told the full evaluations that fit this budget, whoever proposed them, and what it asks for is
    brought under the budget by random steps down. So the loss is all that it has to minimise, and it never learns from
    a plan that the budget forbids. Without a named budget those of `StudyState.budgets` take turns.
    """

    @abstractmethod
    def suggestions(self, problem: Problem) -> Iterator[np.ndarray]:
        """int (V,) each: what the optimizer asks for, the best first; it may end."""

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        levels = PlanCodec(state.space)
        free = np.flatnonzero(levels.allowed.sum(1) > 1)
        only = levels.allowed.argmax(1)
        running: dict[int, Iterator[np.ndarray]] = {}
        asked = dict.fromkeys(range(n), 0)

        def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            if not len(free):
                return only, self.name
            budget = state.budgets[(len(state.trials) + offset) % len(state.budgets)]
            if budget not in running:
                running[budget] = self.suggestions(_problem(state, levels, free, budget))
            point = next(running[budget], None) if asked[offset] < ASKED else None
            asked[offset] += 1
            if point is None:
                return levels.repair(levels.random(rng), budget, rng), "random"
            row = only.copy()
            row[free] = [np.flatnonzero(levels.allowed[v])[place] for v, place in zip(free, point, strict=True)]
            return levels.repair(row, budget, rng), self.name

        return fresh_plans(state, n, draw)


@contextmanager
def quiet() -> Iterator[None]:
    """Neither the log nor the warnings of an optimizer that is rebuilt for every proposal; as before afterwards."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _problem(state: StudyState, levels: PlanCodec, free: np.ndarray, budget: int) -> Problem:
    losses = mean_losses([t for t in state.full if state.space.memory_bytes(t.plan) <= budget])
    rows = levels.encode(list(losses)) if losses else np.zeros((0, levels.variables), int)
    places = levels.allowed.cumsum(1) - 1
    return Problem(
        counts=levels.allowed.sum(1)[free],
        points=places[free, rows[:, free]],
        losses=np.array(list(losses.values())),
        seed=int(state.rng().integers(1 << 31)),
        evaluations=max(int(state.evaluations), 1),
    )
