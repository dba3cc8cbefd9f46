"""NSGA-II on integer levels: pymoo's survival and operators, with the trial log as the population."""

from __future__ import annotations

from typing import Any

import numpy as np

from qra_search.strategies._moves import Levels, budget_in_turn, fresh_plans
from qra_search.strategies._survival import mean_losses, population, survive
from qra_search.strategies.additive import additive_plan, prior_table
from qra_search.strategies.base import Strategy, StudyState
from qra_search.trials import Proposal

POPULATION = 20
PRIOR_SHARE = 0.25
UNIFORM_SHARE = 0.15


class NSGA2Strategy(Strategy):
    """NSGA-II (Deb et al. 2002) over (loss, exact bytes).

    Generations are counted, not stored: proposal number i belongs to generation i // population. Generation
    0 is a mix of uniform, random and (with a prior) additive plans; the parents of a later one are the
    survivors among the fully evaluated trials of all generations before it, whoever proposed them.

    Args:
        population: plans in a generation.
        crossover: chance that a mating recombines its parents; a group's (bits, rank) is one gene.
        mutation: chance of each variable to go one level up or down; default: one in a row on average.
        use_prior: whether generation 0 holds the additive optima of the prior.
    """

    name = "nsga2"

    def __init__(
        self,
        population: int = POPULATION,
        crossover: float = 0.9,
        mutation: float | None = None,
        use_prior: bool = True,
    ):
        if population < 2:
            raise ValueError(f"population must be at least 2, got {population}")
        self.population = population
        self.crossover = crossover
        self.mutation = mutation
        self.use_prior = use_prior

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        parents: dict[int, Any] = {}

        def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            generation = (len(state.trials) + offset) // self.population
            if generation not in parents:
                parents[generation] = self._parents(state, generation)
            if parents[generation] is None:
                return self._first(state, offset, rng)
            return self._child(state, parents[generation], offset, rng), "offspring"

        return fresh_plans(state, n, draw)

    def _parents(self, state: StudyState, generation: int) -> Any:
        """Survivors among the trials before a generation; None where there are too few to mate."""
        before = [t for t in state.full if t.id < generation * self.population]
        plans, losses = mean_losses(before)
        if len(plans) < 2:
            return None
        rows = Levels(state.space).encode(plans)
        objectives = np.column_stack([losses, Levels(state.space).bytes(rows)])
        rng = np.random.default_rng([state.seed, generation])
        return survive(population(rows, objectives), self.population, rng)

    def _first(self, state: StudyState, offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        levels, kind = Levels(state.space), rng.random()
        budget = state.budgets[(len(state.trials) + offset) % len(state.budgets)]
        if self.use_prior and state.prior is not None and kind < PRIOR_SHARE:
            share = rng.random()
            within = int(state.memory.minimum + share * (budget - state.memory.minimum))
            plan = additive_plan(state.space, prior_table(state.space, state.prior), within)
            if plan is not None:
                return levels.encode([plan])[0], "additive"
        uniform = [p for p in state.space.uniform_plans() if state.space.memory_bytes(p) <= state.memory_limit]
        if uniform and kind > 1.0 - UNIFORM_SHARE:
            return levels.encode([uniform[rng.integers(len(uniform))]])[0], "uniform"
        return levels.repair(levels.random(rng), budget, rng), "random"

    def _child(self, state: StudyState, parents: Any, offset: int, rng: np.random.Generator) -> np.ndarray:
        from pymoo.core.mating import Mating

        from qra_search.strategies import _operators as op

        mating = Mating(
            op.tournament(),
            op.LayerAtomicCrossover(self.crossover),
            op.AdjacentMutation(self.mutation),
            repair=op.BudgetRepair(budget_in_turn(state, offset)),
        )
        return mating.do(op.LevelProblem(Levels(state.space)), parents, 1, random_state=rng)[0].X.astype(int)
