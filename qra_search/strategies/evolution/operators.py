"""pymoo operators on integer levels: layer-atomic crossover, adjacent-level mutation, repair to a memory budget.

All randomness comes from the `random_state` that pymoo hands on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.selection.tournament import TournamentSelection

from qra_search.strategies.evolution.edits import Levels, mutate
from qra_search.strategies.evolution.importance import EPSILON, Importance, repair_by_importance


class LevelProblem(Problem):
    """The search over rows of levels, for pymoo's operators; evaluation happens outside."""

    def __init__(self, levels: Levels):
        highest = levels.allowed.shape[1] - 1 - levels.allowed[:, ::-1].argmax(1)
        super().__init__(n_var=levels.variables, n_obj=2, xl=levels.allowed.argmax(1), xu=highest, vtype=int)
        self.levels = levels


class LayerAtomicCrossover(Crossover):
    """Uniform crossover in which a group's (bits, rank) is one gene: a child has both from the same parent."""

    def __init__(self, prob: float = 0.9):
        super().__init__(n_parents=2, n_offsprings=2, prob=prob, vtype=int)

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        _, matings, variables = X.shape
        gene = random_state.random((matings, variables // 2)) < 0.5
        swap = np.concatenate([gene, gene], axis=1)
        return np.stack([np.where(swap, X[1], X[0]), np.where(swap, X[0], X[1])])


class AdjacentMutation(Mutation):
    """Each variable goes, with probability `prob_var`, one level up or down; at least one of every row does.

    Where only one direction is open, that one is taken.
    """

    def __init__(self, prob_var: float | None = None):
        super().__init__(prob=1.0, vtype=int)
        self.rate = prob_var

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        levels: Levels = problem.levels
        rate = 1.0 / problem.n_var if self.rate is None else self.rate
        return np.stack([mutate(levels, row, rate, random_state) for row in X])


class BudgetRepair(Repair):
    """Random steps down until a row fits its budget; `budget` is bytes."""

    def __init__(self, budget: int):
        super().__init__(vtype=int)
        self.budget = budget

    def _do(self, problem: Any, X: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        return np.stack([problem.levels.repair(row, self.budget, random_state) for row in X])


class ImportanceMutation(Mutation):
    """One step of a variable drawn in proportion to importance^gamma, or a raise that other choices pay for.

    A single step goes up with a chance equal to the variable's importance, else down. A coupled mutation raises
    one choice, and brings the row back under the budget by the steps down that matter least elsewhere.
    """

    def __init__(self, importance: Importance, budget: int, gamma: float, coupled: float):
        super().__init__(prob=1.0, vtype=int)
        self.importance, self.budget, self.gamma, self.coupled = importance, budget, gamma, coupled

    def _do(self, problem: Any, X: np.ndarray, *args: Any, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        return np.stack([self._one(problem.levels, row, random_state) for row in X])

    def _one(self, levels: Levels, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        v = np.arange(levels.variables)
        up, down = levels.above[v, row], levels.below[v, row]
        raising = rng.random() < self.coupled and (up != row).any()
        chance = ((up != row) if raising else (up != row) | (down != row)) * self._preference
        if not chance.any():
            return row.copy()
        at = int(rng.choice(levels.variables, p=chance / chance.sum()))
        upward = raising or rng.random() < self.importance.variables[at]
        first, other = (up[at], down[at]) if upward else (down[at], up[at])
        mutated = row.copy()
        mutated[at] = first if first != row[at] else other
        return repair_by_importance(levels, mutated, self.budget, self.importance, keep=at) if raising else mutated

    @property
    def _preference(self) -> np.ndarray:
        return np.maximum(self.importance.variables, EPSILON) ** self.gamma


class ImportanceRepair(Repair):
    """The steps down that matter least for the bytes they save, until a row fits `budget` bytes."""

    def __init__(self, importance: Importance, budget: int):
        super().__init__(vtype=int)
        self.importance, self.budget = importance, budget

    def _do(self, problem: Any, X: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
        return np.stack([repair_by_importance(problem.levels, row, self.budget, self.importance) for row in X])


def tournament() -> TournamentSelection:
    """Binary tournament by rank, then crowding, then chance (Deb et al. 2002)."""
    return TournamentSelection(pressure=2, func_comp=_fitter)


def _fitter(pop: Any, P: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
    rank, crowding = pop.get("rank").astype(float), pop.get("crowding").astype(float)
    a, b = P[:, 0], P[:, 1]
    coin = random_state.random(len(P)) < 0.5
    first = (rank[a] < rank[b]) | ((rank[a] == rank[b]) & (crowding[a] > crowding[b]))
    tie = (rank[a] == rank[b]) & (crowding[a] == crowding[b])
    return np.where(np.where(tie, coin, first), a, b)[:, None]
