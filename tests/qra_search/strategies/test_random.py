"""Budgets take turns."""

from __future__ import annotations

from qra_search.strategies.simple import budgets_in_turn
from qra_search.testing.scenarios import scenario


def test_budgets_take_turns_by_the_number_of_the_proposal():
    state = scenario("a log that another strategy wrote")
    first, second = state.memory_budgets
    assert [budgets_in_turn(state, k) for k in range(3)] == [(first, second), (second, first), (first, second)]
