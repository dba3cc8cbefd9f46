"""Who survives among evaluated plans: the environmental selection of NSGA-II, as pymoo does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qra_search.log.trial import Trial
from qra_search.space.space import Plan
from qra_search.strategies.base import mean_estimates


def population(rows: np.ndarray, objectives: np.ndarray) -> Any:
    """pymoo's Population of rows (N, 2 G) with their objectives (N, 2)."""
    from pymoo.core.population import Population

    return Population.new("X", rows, "F", np.asarray(objectives, dtype=float), "CV", np.zeros((len(rows), 1)))


def survive(pop: Any, size: int, rng: np.random.Generator) -> Any:
    """At most `size` of a population by rank and crowding (Deb et al. 2002); each then knows its rank and crowding."""
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    problem = Problem(n_var=pop.get("X").shape[1], n_obj=2)
    return RankAndCrowding().do(problem, pop, n_survive=size, random_state=rng)


def mean_losses(trials: Sequence[Trial]) -> tuple[list[Plan], np.ndarray]:
    """Distinct plans of finished trials in order of first trial, and the mean loss (N,) of each."""
    estimates = mean_estimates(trials)
    return list(estimates.plans), estimates.mean
