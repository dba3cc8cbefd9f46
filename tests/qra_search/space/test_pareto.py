"""The front is what a library calls the first one, and stands in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from qra_search.strategies.base import non_dominated


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=25))
def test_the_front_is_pymoos_first_front_from_the_cheapest_on_without_repeats(points):
    array = np.array(points, dtype=float)
    front = non_dominated(array[:, 0], array[:, 1])
    theirs = NonDominatedSorting().do(array, only_non_dominated_front=True)
    assert {points[i] for i in front} == {points[i] for i in theirs}
    assert (np.diff(array[front, 1]) > 0).all()
    assert list(front) == [points.index(points[i]) for i in front]
