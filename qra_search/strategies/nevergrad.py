"""Nevergrad's optimizers as strategies, rebuilt from the trial log for every proposal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from qra_search.errors import install_hint
from qra_search.plugins import did_you_mean
from qra_search.strategies.outside import OutsideStrategy, Problem, quiet


class NevergradStrategy(OutsideStrategy):
    """An optimizer of nevergrad over the levels as ordered choices. Needs the extra `nevergrad`.

    Args:
        optimizer: a name of `nevergrad.optimizers.registry`; `NGOpt` chooses one by the size of the problem.
    """

    name = "nevergrad"

    def __init__(self, optimizer: str = "NGOpt"):
        ng = _nevergrad()
        if optimizer not in ng.optimizers.registry:
            near = did_you_mean(optimizer, ng.optimizers.registry)
            raise ValueError(f"unknown nevergrad optimizer {optimizer!r}: {near}NGOpt chooses one by itself")
        self.optimizer = optimizer

    def suggestions(self, problem: Problem) -> Iterator[np.ndarray]:
        ng = _nevergrad()
        # Variables of as many levels are one choice with repetitions: with one for each of 420, a trial takes 0.3 s.
        alike = {int(k): np.flatnonzero(problem.counts == k) for k in np.unique(problem.counts)}
        choices = {str(k): ng.p.TransitionChoice(range(k), repetitions=len(v)) for k, v in alike.items()}
        space = ng.p.Dict(**choices)
        space.random_state.seed(problem.seed)
        with quiet():
            optimizer = ng.optimizers.registry[self.optimizer](space, budget=problem.evaluations)
            # What is suggested to NGOpt does not count for what it chose, which would begin anew at every proposal.
            if isinstance(optimizer, ng.optimization.optimizerlib.NGOptBase):
                optimizer = optimizer.optim
            # Evolution takes its parents in the order of telling: a rebuilt one would always take the same first.
            for i in np.random.default_rng(problem.seed).permutation(len(problem.losses)):
                point = problem.points[i]
                optimizer.suggest({str(k): tuple(point[v].tolist()) for k, v in alike.items()})
                self._tell(optimizer, optimizer.ask(), float(problem.losses[i]))
        while True:
            with quiet():
                value = optimizer.ask().value
            asked = np.zeros(len(problem.counts), int)
            for k, variables in alike.items():
                asked[variables] = value[str(k)]
            yield asked

    def _tell(self, optimizer: Any, candidate: Any, loss: float) -> None:
        try:
            optimizer.tell(candidate, loss)
        except _nevergrad().errors.TellNotAskedNotSupportedError:
            raise ValueError(
                f"nevergrad's {self.optimizer} takes only points that it asked for, and cannot be rebuilt from a log: "
                "choose another optimizer, such as NGOpt"
            ) from None


def _nevergrad() -> Any:
    try:
        import nevergrad
    except ImportError:
        raise ImportError(f"nevergrad's optimizers need the package nevergrad: {install_hint('nevergrad')}") from None
    return nevergrad
