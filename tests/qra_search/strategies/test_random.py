"""Budgets take turns, and proposals are new."""

from __future__ import annotations

from qra_search.strategies.random import budgets_in_turn, fresh_plans
from qra_search.testing.scenarios import ToyEvaluator, logged_state, scenario, toy_space


def test_budgets_take_turns_by_the_number_of_the_proposal():
    state = scenario("a log that another strategy wrote")
    first, second = state.memory_budgets
    assert [budgets_in_turn(state, k) for k in range(3)] == [(first, second), (second, first), (first, second)]


def test_fresh_plans_draws_again_then_falls_back_on_random_plans():
    state = scenario("a log that another strategy wrote")
    proposals = fresh_plans(state, 2, lambda offset, rng: (state.trials[0].plan, "stubborn"))
    assert [p.origin for p in proposals] == ["random", "random"]
    assert not {p.plan for p in proposals} & state.seen


def test_fresh_plans_ends_where_nothing_is_left():
    state = logged_state(ToyEvaluator(toy_space(1, bits=(2,), ranks=(4, 8))), 2)
    assert fresh_plans(state, 3, lambda offset, rng: (state.trials[0].plan, "x")) == []
