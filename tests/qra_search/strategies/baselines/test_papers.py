"""Importances follow the sensitivities; warm starts and repairs follow the importances, and obey the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_search import Sensitivities
from qra_search.space.levels import Level
from qra_search.space.memory import GroupwiseFormat
from qra_search.strategies.baselines.autoqra import GAMMA, mutate_by_importance
from qra_search.strategies.baselines.qr_adaptor import EPSILON, GuidedSteps, measure_importance
from qra_search.testing.scenarios import interpolate_budgets, make_toy_space

SPACE = make_toy_space(6)
DAMAGE = np.array([0.1, 0.8, 0.2, 1.6, 0.4, 0.05])
SENSITIVITIES = Sensitivities(DAMAGE[:, None] * 0.25 ** np.arange(4), np.outer(DAMAGE[::-1], [0.1, 0.2, 0.3]))
IMPORTANCE = measure_importance(SPACE, SENSITIVITIES)
STEPS = GuidedSteps(SPACE, IMPORTANCE)
count_bytes = SPACE.memory.bytes


def test_importance_is_damage_at_the_fewest_bits_and_gain_at_the_largest_rank():
    np.testing.assert_allclose(IMPORTANCE, [DAMAGE / 1.6, DAMAGE[::-1] / 1.6])
    assert (measure_importance(SPACE, Sensitivities(np.zeros((6, 4)), np.zeros((6, 3)))) == 1).all()


@given(st.floats(0.0, 1.0))
@settings(deadline=None)
def test_a_warm_start_fits_the_budget_and_gives_more_to_what_matters_more(share):
    budget = interpolate_budgets(SPACE, share)[0]
    bits, ranks = code = STEPS.make_warm_start(budget)
    assert count_bytes(code) <= budget
    assert (np.diff(bits[np.argsort(IMPORTANCE[0])]) >= 0).all()
    assert (np.diff(ranks[np.argsort(IMPORTANCE[1])]) >= 0).all()


def test_a_warm_start_spends_the_budget():
    """Not all 2 bits, as an importance that defaults to zero would give, and not beyond what fits."""
    assert (
        min(count_bytes(STEPS.make_warm_start(b)) / b for b in interpolate_budgets(SPACE, 0.3, 0.6, 1.0))
        > 0.75
    )
    assert STEPS.make_warm_start(SPACE.memory.maximum).tolist() == [[3] * 6, [2] * 6]


def test_a_warm_start_fits_where_the_first_of_two_levels_of_a_width_is_larger():
    levels = tuple(
        Level(name, 4, format=GroupwiseFormat(4, metadata_bits=bits)) for name, bits in (("a", 64), ("b", 8))
    )
    space = make_toy_space(bits=levels)
    steps = GuidedSteps(space, np.ones((2, len(space))))
    assert space.memory.bytes(steps.make_warm_start(space.memory.minimum)) == space.memory.minimum


def test_repair_takes_the_step_with_the_least_importance_a_byte_saved():
    code = STEPS.sample(np.random.default_rng(1))
    repaired = STEPS.repair_by_importance(code, int(count_bytes(code)) - 1)
    price = {}
    for v in range(code.size):
        lower = code.copy()
        lower.flat[v] = STEPS.decrease_choices(code).flat[v]
        saved = int(count_bytes(code) - count_bytes(lower))
        if saved > 0:
            price[v] = (IMPORTANCE.flat[v] + EPSILON) / saved
    assert np.flatnonzero(repaired != code).tolist() == [min(price, key=price.get)]


@given(st.integers(0, 1000), st.floats(0.0, 1.0), st.integers(0, 11))
@settings(deadline=None)
def test_repair_fits_and_keeps_a_variable_while_others_can_pay(seed, share, keep):
    budget = interpolate_budgets(SPACE, share)[0]
    code = STEPS.sample(np.random.default_rng(seed))
    repaired = STEPS.repair_by_importance(code, budget, keep=keep)
    assert count_bytes(repaired) <= budget
    assert repaired.flat[keep] == code.flat[keep] or (np.delete(repaired, keep) == 0).all()


def test_coverage_is_the_importance_weighted_mean_place():
    codes = np.zeros((3, 2, 6), int)
    codes[1] = [[3] * 6, [2] * 6]
    codes[2, 0, 3] = 3
    expected = [[0.0, 0.0], [1.0, 1.0], [DAMAGE[3] / DAMAGE.sum(), 0.0]]
    assert STEPS.compute_coverage(codes) == pytest.approx(np.array(expected))


def test_atomic_edits_are_steps_of_one_choice_or_of_both_in_one_group():
    steps = GuidedSteps(make_toy_space(3, restricted=True), np.ones((2, 3)))
    code = steps.sample(np.random.default_rng(3))
    edits = steps.list_atomic_edits(code)
    assert len({edit.tobytes() for edit in edits}) == len(edits)
    for edit in edits:
        changed = edit != code
        assert changed.sum() in (1, 2) and changed.any(0).sum() == 1
        assert (
            ((edit == steps.increase_choices(code)) | (edit == steps.decrease_choices(code)))[changed]
        ).all()
    assert sum((edit != code).sum() == 1 for edit in edits) == len(steps.list_neighbours(code))


def mutate_often(coupled: float, budget: int, count: int = 400):
    rng, code = np.random.default_rng(2), np.ones((2, 6), int)
    return np.stack([mutate_by_importance(STEPS, code, budget, rng, coupled) for _ in range(count)]) - code


def test_single_mutations_choose_by_importance_to_the_gamma_and_go_up_where_it_is_largest():
    change = mutate_often(0.0, SPACE.memory.maximum, 2000)
    assert (np.abs(change).sum((1, 2)) == 1).all()
    assert (change != 0).mean(0) == pytest.approx(IMPORTANCE**GAMMA / (IMPORTANCE**GAMMA).sum(), abs=0.07)
    most, least = change[:, 0, 3], change[:, 0, 5]
    assert (most == -1).sum() == 0 and (most == 1).sum() > 0
    assert (least == 1).sum() <= (least == -1).sum()


def test_coupled_mutations_raise_one_choice_and_pay_with_others():
    budget = int(count_bytes(np.ones((2, 6), int)))
    change = mutate_often(1.0, budget)
    assert ((change > 0).sum((1, 2)) == 1).all() and ((change < 0).sum((1, 2)) >= 1).all()
    assert (count_bytes(change + 1) <= budget).all()
