"""NSGA-II selects as pymoo does, and its operators keep genes whole, steps adjacent and plans within the budget."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pymoo.algorithms.moo.nsga2 import binary_tournament

from qra_search.space.steps import AdjacentSteps
from qra_search.strategies import average_losses
from qra_search.strategies.baselines import nsga2
from qra_search.strategies.baselines.nsga2 import NSGA2Strategy, mutate, select_survivors
from qra_search.testing.scenarios import ToyEvaluator, interpolate_budgets, make_logged_state, make_toy_space

SPACE = make_toy_space(6, restricted=True)
STEPS = AdjacentSteps(SPACE)


def random_codes(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([STEPS.sample(rng) for _ in range(count)])


@given(st.integers(0, 1000))
def test_crossover_keeps_the_bits_and_rank_of_a_group_together(seed):
    state = make_logged_state(ToyEvaluator(SPACE), 2)
    parents = SPACE.encode_many(t.plan for t in state.trials)
    population = select_survivors(state, average_losses(state.full), 2, 0)
    child = nsga2.cross_parents(population, 1.0, np.random.default_rng(seed))
    for g in range(len(SPACE)):
        assert tuple(child[:, g]) in {tuple(code[:, g]) for code in parents}


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_mutation_takes_allowed_adjacent_steps_and_at_least_one(seed, rate):
    X = random_codes(seed, 5)
    rng = np.random.default_rng(seed)
    mutated = [mutate(STEPS, code, rate, rng) for code in X]
    for before, after in zip(X, mutated, strict=True):
        assert SPACE.contains(SPACE.decode(after))
        changed = after != before
        assert changed.any()
        adjacent = (after == STEPS.increase_choices(before)) | (after == STEPS.decrease_choices(before))
        assert adjacent[changed].all()


def test_the_tournament_prefers_what_pymoos_prefers():
    state = make_logged_state(ToyEvaluator(), 12)
    pop = select_survivors(state, average_losses(state.full), 12, 0)
    pairs = np.array([[a, b] for a in range(12) for b in range(a)])
    algorithm = SimpleNamespace(
        tournament_type="comp_by_rank_and_crowding", random_state=np.random.default_rng(0)
    )
    theirs = binary_tournament(pop, pairs, algorithm).ravel()
    ours = nsga2.select_winners(pop, pairs, random_state=np.random.default_rng(0)).ravel()
    rank, crowding = pop.get("rank"), pop.get("crowding")
    decided = [(rank[a], crowding[a]) != (rank[b], crowding[b]) for a, b in pairs]
    assert ours[decided].tolist() == theirs[decided].tolist()


def test_parents_are_distinct_survivors_of_the_trials_given():
    state = make_logged_state(ToyEvaluator(), 11)
    assert select_survivors(state, average_losses(state.full[:1]), 4, 0) is None
    parents = select_survivors(state, average_losses(state.full[:8]), 4, 2)
    known = {tuple(code.ravel()) for code in state.space.encode_many([t.plan for t in state.trials[:8]])}
    assert len(parents) == 4
    assert {tuple(p.X) for p in parents} <= known


def test_the_running_generation_does_not_mate():
    """Results of the last trials change nothing until their generation is complete."""
    evaluator, strategy = ToyEvaluator(make_toy_space(8)), NSGA2Strategy(population=4)
    state = make_logged_state(evaluator, 11, writer=strategy)
    worse = [replace(t, evaluation=replace(t.evaluation, loss=9.0)) for t in state.trials[8:]]
    assert strategy.propose(state, 1) == strategy.propose(
        replace(state, trials=(*state.trials[:8], *worse)), 1
    )


def test_the_first_generation_is_mixed_and_the_next_are_offspring():
    evaluator = ToyEvaluator(make_toy_space(8))
    state = make_logged_state(
        evaluator, 40, budgets=interpolate_budgets(evaluator.space, 0.4, 0.7), writer=NSGA2Strategy()
    )
    origins = [t.proposal.origin for t in state.trials]
    assert {"uniform", "random", "additive"} <= set(origins[:20])
    assert set(origins[20:]) == {"offspring"}
