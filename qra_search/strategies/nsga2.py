"""NSGA-II on integer levels: pymoo's survival and operators, with the trial log as the population."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.space.space import Plan
from qra_search.strategies.additive import additive_plan
from qra_search.strategies.base import Strategy, mean_losses
from qra_search.strategies.evolution.edits import PlanCodec, budget_in_turn, fresh_plans, mutate
from qra_search.strategies.evolution.operators import child, survivors
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
    """

    name = "nsga2"

    def __init__(self, population: int = POPULATION, crossover: float = CROSSOVER, mutation: float | None = None):
        self.population, self.crossover, self.mutation = check_population(population), crossover, mutation

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        levels = PlanCodec(state.space)
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
        levels, kind = PlanCodec(state.space), rng.random()
        budget = state.budgets[(len(state.trials) + offset) % len(state.budgets)]
        if state.sensitivities is not None and kind < PRIOR_SHARE:
            share = rng.random()
            within = int(state.memory.minimum + share * (budget - state.memory.minimum))
            plan = additive_plan(state.space, prior_table(state.space, state.sensitivities), within)
            if plan is not None:
                return levels.encode([plan])[0], "additive"
        uniform = [p for p in state.space.uniform_plans() if state.space.memory_bytes(p) <= state.memory_limit]
        if uniform and kind > 1.0 - UNIFORM_SHARE:
            return levels.encode([uniform[rng.integers(len(uniform))]])[0], "uniform"
        return levels.repair(levels.random(rng), budget, rng), "random"


def check_population(size: int) -> int:
    """The size itself, or ValueError if it is too small to mate."""
    if size < 2:
        raise ValueError(f"population must be at least 2, got {size}")
    return size


def parents_of(state: StudyState, trials: Sequence[Trial], size: int, generation: int) -> Any:
    """At most `size` survivors among finished trials, a pymoo Population; None if there are too few to mate."""
    return survivors_of(state, mean_losses(trials), size, generation)


def survivors_of(state: StudyState, losses: Mapping[Plan, float], size: int, generation: int) -> Any:
    """At most `size` of the plans by rank and crowding in (loss, exact bytes), a pymoo Population; None if too few."""
    if len(losses) < 2:
        return None
    levels = PlanCodec(state.space)
    rows = levels.encode(list(losses))
    rng = np.random.default_rng([state.seed, generation])
    return survivors(rows, np.column_stack([list(losses.values()), levels.bytes(rows)]), size, rng)


def child_of(
    levels: PlanCodec,
    parents: Any,
    budget: int,
    rng: np.random.Generator,
    crossover: float = CROSSOVER,
    mutation: float | None = None,
) -> np.ndarray:
    """int (2 G,): one child of a population, by adjacent mutation and random steps down to the budget."""
    rate = 1.0 / levels.variables if mutation is None else mutation
    return child(
        parents,
        crossover,
        lambda row, rng: mutate(levels, row, rate, rng),
        lambda row, rng: levels.repair(row, budget, rng),
        rng,
    )
