"""What strategies share: the front of plans, and budgets in turn."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from qra_search.strategies import find_non_dominated
from qra_search.strategies.simple import rotate_budgets
from qra_search.testing.scenarios import scenario


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25))
def test_the_front_is_pymoos_first_front_from_the_cheapest_on_without_repeats(points):
    array = np.array(points, dtype=float)
    front = find_non_dominated(array[:, 0], array[:, 1])
    theirs = NonDominatedSorting().do(array, only_non_dominated_front=True)
    assert {points[i] for i in front} == {points[i] for i in theirs}
    assert (np.diff(array[front, 1]) > 0).all()
    assert list(front) == [points.index(points[i]) for i in front]


def test_budgets_take_turns_by_the_number_of_the_proposal():
    state = scenario("a log that another strategy wrote")
    first, second = state.memory_budgets
    assert [rotate_budgets(state, k) for k in range(3)] == [(first, second), (second, first), (first, second)]
