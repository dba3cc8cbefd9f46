"""pymoo's survival and mating over rows of integer levels: what is ours is a crossover and a step for each row.

All randomness comes from the `random_state` that pymoo hands on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

Step = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""A row (2 G,) to another."""


def survivors(rows: np.ndarray, objectives: np.ndarray, size: int, rng: np.random.Generator) -> Population:
    """At most `size` of the rows (N, 2 G) by rank and crowding in objectives (N, 2) (Deb et al. 2002); each then knows
    its rank and crowding."""
    pop = Population.new("X", rows, "F", np.asarray(objectives, dtype=float), "CV", np.zeros((len(rows), 1)))
    return RankAndCrowding().do(Problem(n_var=rows.shape[1], n_obj=2), pop, n_survive=size, random_state=rng)


def child(parents: Population, crossover: float, mutate: Step, repair: Step, rng: np.random.Generator) -> np.ndarray:
    """int (2 G,): one child by tournament, layer-atomic crossover (with this chance), mutation and repair."""
    tournament = TournamentSelection(pressure=2, func_comp=_fitter)
    mating = Mating(tournament, LayerAtomicCrossover(crossover), _RowMutation(mutate), repair=_RowRepair(repair))
    problem = Problem(n_var=parents.get("X").shape[1], n_obj=2, vtype=int)
    return mating.do(problem, parents, 1, random_state=rng)[0].X.astype(int)


class LayerAtomicCrossover(Crossover):
    """Uniform crossover in which a group's (bits, rank) is one gene: a child has both from the same parent."""

    def __init__(self, prob: float):
        super().__init__(n_parents=2, n_offsprings=2, prob=prob, vtype=int)

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        _, matings, variables = X.shape
        gene = random_state.random((matings, variables // 2)) < 0.5
        swap = np.concatenate([gene, gene], axis=1)
        return np.stack([np.where(swap, X[1], X[0]), np.where(swap, X[0], X[1])])


class _RowMutation(Mutation):
    def __init__(self, step: Step):
        super().__init__(prob=1.0, vtype=int)
        self.step = step

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        return np.stack([self.step(row, random_state) for row in X])


class _RowRepair(Repair):
    def __init__(self, step: Step):
        super().__init__(vtype=int)
        self.step = step

    def _do(self, problem: Any, X: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        return np.stack([self.step(row, random_state) for row in X])


def _fitter(pop: Any, P: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
    """The winners of pairs P (M, 2), by rank, then crowding, then chance (Deb et al. 2002)."""
    rank, crowding = pop.get("rank").astype(float), pop.get("crowding").astype(float)
    a, b = P[:, 0], P[:, 1]
    coin = random_state.random(len(P)) < 0.5
    first = (rank[a] < rank[b]) | ((rank[a] == rank[b]) & (crowding[a] > crowding[b]))
    tie = (rank[a] == rank[b]) & (crowding[a] == crowding[b])
    return np.where(np.where(tie, coin, first), a, b)[:, None]
