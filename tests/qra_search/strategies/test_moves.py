"""Rows of levels code plans exactly, and moves between them are lawful."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search.log.trial import Proposal
from qra_search.strategies.evolution.edits import PlanCodec, budget_in_turn, fresh_plans, one_by_one
from qra_search.testing.scenarios import ToyEvaluator, budgets_of, logged_state, scenario, toy_space

SPACE = toy_space(4, restricted=True)
LEVELS = PlanCodec(SPACE)


@given(st.integers(0, 10_000))
def test_encode_inverts_decode_and_bytes_are_the_spaces(seed):
    row = LEVELS.random(np.random.default_rng(seed))
    plan = LEVELS.decode(row)
    assert np.array_equal(LEVELS.encode([plan])[0], row)
    assert LEVELS.bytes(row) == SPACE.memory_bytes(plan) == LEVELS.bytes(row[None])[0]
    rows = np.arange(LEVELS.variables)
    assert LEVELS.bytes_of[rows, row].sum() + SPACE.fixed_bytes == LEVELS.bytes(row)


@given(st.integers(0, 10_000))
def test_neighbours_are_all_the_plans_one_adjacent_step_away(seed):
    row = LEVELS.random(np.random.default_rng(seed))
    found = {tuple(r) for r in LEVELS.neighbours(row)}
    expected = set()
    for v in range(LEVELS.variables):
        allowed = np.flatnonzero(LEVELS.allowed[v]).tolist()
        at = allowed.index(row[v])
        for place in (at - 1, at + 1):
            if 0 <= place < len(allowed):
                expected.add((*row[:v], allowed[place], *row[v + 1 :]))
    assert found == expected and len(LEVELS.neighbours(row)) == len(expected)


@given(st.integers(0, 10_000))
def test_swaps_move_one_variable_up_and_another_down(seed):
    rng = np.random.default_rng(seed)
    row = LEVELS.random(rng)
    for swapped in LEVELS.swaps(row, 20, rng):
        change = np.sign(swapped - row)
        assert (change == 1).sum() == 1 and (change == -1).sum() == 1
        assert LEVELS.allowed[np.arange(LEVELS.variables), swapped].all()


def test_a_space_of_one_plan_has_no_moves():
    levels = PlanCodec(toy_space(2, bits=(4,), ranks=(8,)))
    row = levels.random(np.random.default_rng(0))
    assert len(levels.neighbours(row)) == 0
    assert len(levels.swaps(row, 5, np.random.default_rng(0))) == 0


@given(st.integers(0, 1000), st.floats(0, 1))
@settings(deadline=None)
def test_repair_never_exceeds_the_budget(seed, share):
    rng = np.random.default_rng(seed)
    budget = budgets_of(SPACE, share)[0]
    assert LEVELS.bytes(LEVELS.repair(LEVELS.random(rng), budget, rng)) <= budget


def test_budgets_take_turns_by_the_number_of_the_proposal():
    state = scenario("a log that another strategy wrote")
    first, second = state.memory_budgets
    assert [budget_in_turn(state, k) for k in range(3)] == [first, second, first]
    assert budget_in_turn(replace(state, memory_budgets=()), 5) == state.space.memory.maximum


def test_fresh_plans_draws_again_then_falls_back_on_random_plans():
    state = scenario("a log that another strategy wrote")
    known = PlanCodec(state.space).encode([state.trials[0].plan])[0]
    proposals = fresh_plans(state, 2, lambda offset, rng: (known, "stubborn"))
    assert [p.origin for p in proposals] == ["random", "random"]
    assert not {p.plan.key for p in proposals} & state.seen
    assert fresh_plans(state, 2, lambda offset, rng: None) == []


def test_fresh_plans_ends_where_nothing_is_left():
    state = logged_state(ToyEvaluator(toy_space(1, bits=(2,), ranks=(4, 8))), 2)
    row = PlanCodec(state.space).encode([state.trials[0].plan])[0]
    assert fresh_plans(state, 3, lambda offset, rng: (row, "x")) == []


def test_one_by_one_shows_each_ask_the_earlier_proposals_as_running():
    state = scenario("one trial")
    asked = []

    def ask(current):
        asked.append(current)
        return None if len(asked) == 3 else Proposal(current.trials[0].plan, seed=100 + len(asked))

    proposals = one_by_one(state, 5, ask)
    assert [p.seed for p in proposals] == [101, 102]
    assert [len(s.pending) for s in asked] == [0, 1, 2]
    assert asked[2].trials[-1].proposal == proposals[1]
    with pytest.raises(ValueError, match="has no loss"):
        _ = asked[2].trials[-1].loss
