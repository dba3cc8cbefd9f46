"""NSGA-II on integer levels: pymoo's survival and operators, with the trial log as the population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.strategies.additive import additive_plan
from qra_search.strategies.base import Strategy
from qra_search.strategies.evolution.edits import Levels, budget_in_turn, fresh_plans
from qra_search.strategies.evolution.importance import Importance
from qra_search.strategies.evolution.survival import mean_losses, population, survive
from qra_search.surrogates.prior_table import prior_table

POPULATION = 20
CROSSOVER = 0.9
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
        crossover: float = CROSSOVER,
        mutation: float | None = None,
        use_prior: bool = True,
    ):
        self.population = check_population(population)
        self.crossover = crossover
        self.mutation = mutation
        self.use_prior = use_prior

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        levels = Levels(state.space)
        parents: dict[int, Any] = {}

        def draw(offset: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
            generation = (len(state.trials) + offset) // self.population
            if generation not in parents:
                before = [t for t in state.full if t.id < generation * self.population]
                parents[generation] = parents_of(state, before, self.population, generation)
            if parents[generation] is None:
                return self._first(state, offset, rng)
            budget = budget_in_turn(state, offset)
            return child_of(levels, parents[generation], budget, rng, self.crossover, self.mutation), "offspring"

        return fresh_plans(state, n, draw)

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


def check_population(size: int) -> int:
    """The size itself, or ValueError where it is too small to mate."""
    if size < 2:
        raise ValueError(f"population must be at least 2, got {size}")
    return size


def parents_of(state: StudyState, trials: Sequence[Trial], size: int, generation: int) -> Any:
    """Survivors among finished trials, a pymoo Population of at most `size`; None where there are too few to mate."""
    plans, losses = mean_losses(trials)
    if len(plans) < 2:
        return None
    levels = Levels(state.space)
    rows = levels.encode(plans)
    return survivors(levels, rows, losses, size, np.random.default_rng([state.seed, generation]))


def survivors(levels: Levels, rows: np.ndarray, losses: np.ndarray, size: int, rng: np.random.Generator) -> Any:
    """At most `size` of the rows (N, 2 G) by rank and crowding in (loss, exact bytes), as a pymoo Population."""
    return survive(population(rows, np.column_stack([losses, levels.bytes(rows)])), size, rng)


def child_of(
    levels: Levels,
    parents: Any,
    budget: int,
    rng: np.random.Generator,
    crossover: float = CROSSOVER,
    mutation: float | None = None,
    importance: tuple[Importance, float, float] | None = None,
) -> np.ndarray:
    """int (2 G,): one child of a population by tournament, layer-atomic crossover, adjacent mutation and repair.

    Args:
        importance: importances, gamma and chance of coupling: then mutation and repair go by them.
    """
    from pymoo.core.mating import Mating

    from qra_search.strategies.evolution import operators as op

    if importance is None:
        step, repair = op.AdjacentMutation(mutation), op.BudgetRepair(budget)
    else:
        known, gamma, coupled = importance
        step, repair = op.ImportanceMutation(known, budget, gamma, coupled), op.ImportanceRepair(known, budget)
    mating = Mating(op.tournament(), op.LayerAtomicCrossover(crossover), step, repair=repair)
    return mating.do(op.LevelProblem(levels), parents, 1, random_state=rng)[0].X.astype(int)
