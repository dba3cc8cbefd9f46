"""Rows code plans exactly, and moves between them are lawful."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search import SearchSpace
from qra_search.strategies.plan_codec import PlanCodec
from qra_search.testing.scenarios import budgets_of, toy_space

SPACE = toy_space(4, restricted=True)
CODEC = PlanCodec(SPACE)


@given(st.integers(0, 10_000))
def test_encode_inverts_decode_and_bytes_are_the_spaces(seed):
    row = CODEC.random(np.random.default_rng(seed))
    plan = CODEC.decode(row)
    assert np.array_equal(CODEC.encode([plan])[0], row)
    assert CODEC.bytes(row) == SPACE.memory_bytes(plan) == CODEC.bytes(row[None])[0]
    rows = np.arange(CODEC.variables)
    assert CODEC.bytes_of[rows, row].sum() + SPACE.fixed_bytes == CODEC.bytes(row)


@given(st.integers(0, 10_000))
def test_neighbours_are_all_the_plans_one_adjacent_step_away(seed):
    row = CODEC.random(np.random.default_rng(seed))
    found = {tuple(r) for r in CODEC.neighbours(row)}
    expected = set()
    for v in range(CODEC.variables):
        allowed = np.flatnonzero(CODEC.allowed[v]).tolist()
        at = allowed.index(row[v])
        for place in (at - 1, at + 1):
            if 0 <= place < len(allowed):
                expected.add((*row[:v], allowed[place], *row[v + 1 :]))
    assert found == expected and len(CODEC.neighbours(row)) == len(expected)


def test_adjacent_values_skip_those_a_group_may_not_take():
    space = toy_space(1, bits=(2, 3, 4, 8), ranks=(4, 8))
    narrow = SearchSpace(
        groups=[space.groups[0].model_copy(update={"bits": (2, 8)})], bits=space.bits, ranks=space.ranks
    )
    codec = PlanCodec(narrow)
    assert codec.above[0, 0] == 3 and codec.below[0, 3] == 0
    assert codec.above[0, 3] == 3 and codec.below[0, 0] == 0


def test_a_space_of_one_plan_has_no_neighbours():
    codec = PlanCodec(toy_space(2, bits=(4,), ranks=(8,)))
    assert len(codec.neighbours(codec.random(np.random.default_rng(0)))) == 0


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
@settings(deadline=None)
def test_repair_fits_the_budget_and_leaves_fitting_plans_alone(seed, share):
    rng = np.random.default_rng(seed)
    budget, row = budgets_of(SPACE, share)[0], CODEC.random(rng)
    repaired = CODEC.repair(row, budget, rng)
    assert CODEC.bytes(repaired) <= budget and (repaired <= row).all()
    assert np.array_equal(repaired, row) or CODEC.bytes(row) > budget
