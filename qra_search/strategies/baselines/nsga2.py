"""NSGA-II (Deb et al. 2002) on plans: pymoo's survival and tournament, with the trial log as the population."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

from qra_search.allocate.solve import solve
from qra_search.log.state import StudyState
from qra_search.schemas import Plan, Proposal
from qra_search.space.steps import AdjacentSteps
from qra_search.strategies import Strategy, average_losses
from qra_search.strategies.simple import propose_new, rotate_budgets, sample_plan

POPULATION = 20
CROSSOVER_CHANCE = 0.9
"""Chance that a mating recombines its parents; a group's (bits, rank) is one gene."""
PRIOR_SHARE = 0.25
UNIFORM_SHARE = 0.15


class NSGA2Strategy(Strategy):
    """NSGA-II of pymoo over loss and bytes.

    Generations are counted, not stored: proposal number i belongs to generation i // population. Generation 0 is a mix
    of uniform, random and (with sensitivities) additive plans; the parents of a later one are the survivors among the
    fully evaluated trials of all generations before it, whoever proposed them.

    Args:
        population: plans in a generation.
    """

    name = "nsga2"
    searches_extra = True

    def __init__(self, population: int = POPULATION):
        self.population = check_population(population)

    def propose(self, state: StudyState, n: int) -> list[Proposal]:
        steps = AdjacentSteps(state.space)
        parents: dict[int, Population | None] = {}

        def draw(offset: int, rng: np.random.Generator) -> tuple[Plan, str]:
            generation = (len(state.trials) + offset) // self.population
            if generation not in parents:
                before = [t for t in state.full if t.id < generation * self.population]
                parents[generation] = select_survivors(
                    state, average_losses(before), self.population, generation
                )
            chosen = parents[generation]
            if chosen is None:
                return self._sample_initial_plan(state, offset, rng)
            budget = rotate_budgets(state, offset)[0] if state.memory_budgets else state.largest_budget
            child = breed_child(steps, chosen, budget, rng)
            return state.space.decode(child), "offspring"

        return propose_new(state, n, draw)

    def _sample_initial_plan(
        self, state: StudyState, offset: int, rng: np.random.Generator
    ) -> tuple[Plan, str]:
        kind = rng.random()
        budget = rotate_budgets(state, offset)[0]
        if state.sensitivities is not None and kind < PRIOR_SHARE:
            share = rng.random()
            within = int(state.memory.minimum + share * (budget - state.memory.minimum))
            return solve(state.space, state.sensitivities, within).plan, "additive"
        uniform = state.space.uniform_plans(state.largest_budget)
        if uniform and kind > 1.0 - UNIFORM_SHARE:
            return uniform[rng.integers(len(uniform))], "uniform"
        return sample_plan(state, rng, budget), "random"


def check_population(size: int) -> int:
    """The size itself, or ValueError if it is too small to mate."""
    if size < 2:
        raise ValueError(f"option 'population' of the strategy must be at least 2, got {size}")
    return size


def select_survivors(
    state: StudyState, losses: Mapping[Plan, float], size: int, generation: int
) -> Population | None:
    """At most `size` of the plans, by rank and crowding in (loss, exact bytes); None if too few to mate."""
    if len(losses) < 2:
        return None
    codes = state.space.encode_many(losses)
    rows = codes.reshape(len(codes), -1)  # as pymoo has them
    objectives = np.column_stack([list(losses.values()), state.memory.bytes(codes)]).astype(float)
    pop = Population.new("X", rows, "F", objectives, "CV", np.zeros((len(rows), 1)))
    problem = Problem(n_var=rows.shape[1], n_obj=2)
    rng = np.random.default_rng([state.seed, generation])
    return RankAndCrowding().do(problem, pop, n_survive=size, random_state=rng)


def breed_child(
    steps: AdjacentSteps, parents: Population, budget: int, rng: np.random.Generator
) -> np.ndarray:
    """int (2, G): a child of a population, by crossover, adjacent mutation and random steps down to the budget."""
    child = cross_parents(parents, CROSSOVER_CHANCE, rng)
    return steps.repair(mutate(steps, child, 1.0 / (2 * len(steps.space)), rng), budget, rng)


def cross_parents(parents: Population, crossover: float, rng: np.random.Generator) -> np.ndarray:
    """int (2, G): the first of two parents by binary tournament, with this chance crossed with the second.

    Crossover is uniform, and a group's (bits, rank) is one gene.
    """
    codes = parents.get("X").astype(int)
    codes = codes.reshape(len(codes), 2, -1)
    chosen = TournamentSelection(pressure=2, func_comp=select_winners).do(
        None, parents, 1, 2, to_pop=False, random_state=rng
    )
    first, second = codes[chosen[0]]
    if rng.random() >= crossover:
        return np.asarray(first)
    return np.where(rng.random(first.shape[1]) < 0.5, second, first)


def mutate(steps: AdjacentSteps, code: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """int (2, G): the code with some variables one step up or down."""
    up = steps.increase_choices(code)
    down = steps.decrease_choices(code)
    movable = ((up != code) | (down != code)).ravel()
    if not movable.any():
        return code.copy()
    chosen = rng.random(code.size) < rate
    chosen[rng.choice(code.size, p=movable / movable.sum())] = True
    upward = rng.random(code.shape) < 0.5
    target = np.where(upward, np.where(up != code, up, down), np.where(down != code, down, up))
    return np.where(chosen.reshape(code.shape), target, code)


def select_winners(pop: Population, P: np.ndarray, random_state: Any = None, **kwargs: Any) -> np.ndarray:
    """The winners (M, 1) of pairs P (M, 2), by rank, then crowding, then chance."""
    rank = pop.get("rank").astype(float)
    crowding = pop.get("crowding").astype(float)
    a, b = P[:, 0], P[:, 1]
    coin = random_state.random(len(P)) < 0.5
    first = (rank[a] < rank[b]) | ((rank[a] == rank[b]) & (crowding[a] > crowding[b]))
    tie = (rank[a] == rank[b]) & (crowding[a] == crowding[b])
    return np.where(np.where(tie, coin, first), a, b)[:, None]
