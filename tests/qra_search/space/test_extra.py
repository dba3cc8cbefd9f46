"""Extra parameters of a plan: further columns of its code, at no bytes, which most strategies do not see."""

from __future__ import annotations

import numpy as np
import pytest

from qra_search.allocate.solve import solve
from qra_search.log.state import StudyState
from qra_search.schemas import ExtraParameter, Group, Linear, Plan, Sensitivities, Trial
from qra_search.space.serialization import plan_from_dict, plan_to_dict
from qra_search.space.space import SearchSpace
from qra_search.strategies.simple import sample_plan

RATE = ExtraParameter((0.001, 0.002, 0.004, 0.008, 0.016), 0.002)
LENGTH = ExtraParameter((0.25, 1.0), 1.0)


def make_space(**extra: ExtraParameter) -> SearchSpace:
    groups = [Group(f"l{i}", (Linear(f"l{i}", 64, 32 + 32 * i),)) for i in range(3)]
    return SearchSpace(groups=groups, bits=(2, 3, 4), ranks=(4, 8), extra=extra)


SPACE = make_space(learning_rate=RATE, length=LENGTH)


def test_a_plan_and_its_code_are_each_others_inverse() -> None:
    plan = Plan((2, 3, 4), (4, 8, 4), (("learning_rate", 0.008), ("length", 0.25)))
    assert SPACE.encode(plan).tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 0, 0]]
    assert SPACE.decode(SPACE.encode(plan)) == plan


def test_what_a_plan_does_not_name_is_at_its_default() -> None:
    plan = Plan((2, 3, 4), (4, 8, 4))
    assert SPACE.decode(SPACE.encode(plan)).extra == (("learning_rate", 0.002), ("length", 1.0))
    uniform = SPACE.uniform(3, 8)
    assert uniform is not None and uniform.extra == () and uniform == SPACE.without_extra.uniform(3, 8)


def test_extra_parameters_take_no_bytes() -> None:
    plain, plan = SPACE.without_extra, Plan((2, 3, 4), (4, 8, 4), (("learning_rate", 0.016),))
    assert SPACE.memory_bytes(plan) == plain.memory_bytes(Plan(plan.bits, plan.ranks))
    assert (SPACE.memory.minimum, SPACE.memory.maximum) == (plain.memory.minimum, plain.memory.maximum)
    assert plain.signature == make_space().signature != SPACE.signature


@pytest.mark.parametrize("extra", [(("learning_rate", 0.003),), (("dropout", 0.1),)])
def test_a_value_or_a_name_of_another_space_is_refused(extra: tuple) -> None:
    plan = Plan((2, 3, 4), (4, 8, 4), extra)
    assert not SPACE.contains(plan)
    with pytest.raises(
        ValueError, match="learning_rate 0.003 is not one of|'dropout', which is not searched"
    ):
        SPACE.encode(plan)


@pytest.mark.parametrize(
    "values, default", [((0.2, 0.1), 0.1), ((0.1, 0.1), 0.1), ((0.1, 0.2), 0.3), ((), 0.1)]
)
def test_values_are_distinct_and_ascending_with_the_default_among_them(values: tuple, default: float) -> None:
    with pytest.raises(ValueError):
        ExtraParameter(values, default)


def test_random_plans_draw_every_value() -> None:
    state, rng = StudyState(SPACE), np.random.default_rng(0)
    plans = [sample_plan(state, rng, SPACE.memory.maximum) for _ in range(60)]
    assert {dict(plan.extra)["learning_rate"] for plan in plans} == set(RATE.values)
    assert {plan.length for plan in plans} == set(LENGTH.values)


def test_the_allocation_is_that_of_the_space_without_them_at_the_defaults() -> None:
    damage = np.array([[1.0, 0.3, 0.1], [0.5, 0.2, 0.05], [2.0, 0.9, 0.2]])
    sensitivities = Sensitivities(damage, np.zeros((3, 2)))
    for budget in (SPACE.memory.minimum, (SPACE.memory.minimum + SPACE.memory.maximum) // 2):
        plan, plain = (solve(space, sensitivities, budget).plan for space in (SPACE, SPACE.without_extra))
        assert (plan.bits, plan.ranks) == (plain.bits, plain.ranks)
        assert dict(plan.extra) == {"learning_rate": 0.002, "length": 1.0}


def test_a_short_evaluation_is_charged_its_length() -> None:
    plan = Plan((2, 3, 4), (4, 8, 4), (("length", 0.25),))
    trial = Trial.from_dict({"id": 0, "proposal": {"plan": plan.to_dict(), "fidelity": 0.5}})
    assert trial.cost == 0.125
    assert StudyState(SPACE, (trial, trial)).spent == 0.25


def test_space_and_plan_are_read_back_from_plain_data() -> None:
    space = SearchSpace.from_dict(SPACE.to_dict())
    assert space.signature == SPACE.signature
    plan = Plan((2, 3, 4), (4, 8, 4), (("learning_rate", 0.008), ("length", 0.25)))
    assert Plan.from_dict(plan.to_dict()) == plan
    assert plan_from_dict(space, plan_to_dict(SPACE, plan)) == Plan(plan.bits, plan.ranks)  # what is tuned
