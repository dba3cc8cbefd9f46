"""Steps of plans are to adjacent allowed choices, and repair ends within the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search import SearchSpace
from qra_search.space.steps import AdjacentSteps, exclude_known
from qra_search.testing.scenarios import interpolate_budgets, make_toy_space

SPACE = make_toy_space(4, restricted=True)
STEPS = AdjacentSteps(SPACE)


@given(st.integers(0, 10_000))
def test_neighbours_are_all_the_plans_one_adjacent_step_away(seed):
    code = STEPS.sample(np.random.default_rng(seed))
    assert np.array_equal(SPACE.encode(SPACE.decode(code)), code)
    found = {neighbour.tobytes() for neighbour in STEPS.list_neighbours(code)}
    expected = set()
    for side, group in np.ndindex(code.shape):
        allowed = np.flatnonzero(STEPS.allowed[side, group]).tolist()
        at = allowed.index(code[side, group])
        for place in (at - 1, at + 1):
            if 0 <= place < len(allowed):
                neighbour = code.copy()
                neighbour[side, group] = allowed[place]
                expected.add(neighbour.tobytes())
    assert found == expected and len(STEPS.list_neighbours(code)) == len(expected)


def test_adjacent_choices_skip_those_a_group_may_not_take():
    space = make_toy_space(1, bits=(2, 3, 4, 8), ranks=(4, 8))
    narrow = SearchSpace(groups=[replace(space.groups[0], bits=(2, 8))], bits=space.bits, ranks=space.ranks)
    steps, least, most = AdjacentSteps(narrow), np.array([[0], [0]]), np.array([[3], [1]])
    assert steps.increase_choices(least).tolist() == [[3], [1]] and steps.decrease_choices(most).tolist() == [
        [0],
        [0],
    ]
    assert (
        steps.increase_choices(most).tolist() == most.tolist()
        and steps.decrease_choices(least).tolist() == least.tolist()
    )


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
@settings(deadline=None)
def test_repair_fits_the_budget_and_leaves_fitting_plans_alone(seed, share):
    rng = np.random.default_rng(seed)
    budget, code = interpolate_budgets(SPACE, share)[0], STEPS.sample(rng)
    repaired = STEPS.repair(code, budget, rng)
    assert SPACE.memory.bytes(repaired) <= budget and (repaired <= code).all()
    assert np.array_equal(repaired, code) or SPACE.memory.bytes(code) > budget


def test_known_plans_and_repeated_ones_are_dropped_in_order():
    codes = np.array([[[1], [2]], [[3], [4]], [[1], [2]], [[5], [6]]])
    np.testing.assert_array_equal(exclude_known(codes, codes[1:2]), codes[[0, 3]])
