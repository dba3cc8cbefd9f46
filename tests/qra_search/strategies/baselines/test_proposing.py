"""Budgets take turns, and proposals are new."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qra_search.log.trial import Proposal
from qra_search.strategies.baselines.proposing import budget_in_turn, fresh_plans, propose_one_by_one
from qra_search.testing.scenarios import ToyEvaluator, logged_state, scenario, toy_space


def test_budgets_take_turns_by_the_number_of_the_proposal():
    state = scenario("a log that another strategy wrote")
    first, second = state.memory_budgets
    assert [budget_in_turn(state, k) for k in range(3)] == [first, second, first]
    assert budget_in_turn(replace(state, memory_budgets=()), 5) == state.space.memory.maximum


def test_fresh_plans_draws_again_then_falls_back_on_random_plans():
    state = scenario("a log that another strategy wrote")
    known = state.space.encode(state.trials[0].plan)
    proposals = fresh_plans(state, 2, lambda offset, rng: (known, "stubborn"))
    assert [p.origin for p in proposals] == ["random", "random"]
    assert not {p.plan for p in proposals} & state.seen


def test_fresh_plans_ends_where_nothing_is_left():
    state = logged_state(ToyEvaluator(toy_space(1, bits=(2,), ranks=(4, 8))), 2)
    row = state.space.encode(state.trials[0].plan)
    assert fresh_plans(state, 3, lambda offset, rng: (row, "x")) == []


def test_one_by_one_shows_each_ask_the_earlier_proposals_as_running():
    state = scenario("one trial")
    asked = []

    def ask(current):
        asked.append(current)
        return None if len(asked) == 3 else Proposal(current.trials[0].plan, seed=100 + len(asked))

    proposals = propose_one_by_one(state, 5, ask)
    assert [p.seed for p in proposals] == [101, 102]
    assert [len(s.pending) for s in asked] == [0, 1, 2]
    assert asked[2].trials[-1].proposal == proposals[1]
    with pytest.raises(ValueError, match="has no loss"):
        _ = asked[2].trials[-1].loss
