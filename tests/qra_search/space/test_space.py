"""Plans, groups and the codec between plans and level arrays."""

from __future__ import annotations

import copy
import pickle

import pytest
from fakes import make_space
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qra_search import Group, Linear, Plan, SearchSpace


@given(st.data())
def test_decode_undoes_encode(data):
    space = make_space(groups=data.draw(st.integers(1, 9)))
    n = len(space)
    plan = Plan(
        tuple(data.draw(st.sampled_from(space.bits)) for _ in range(n)),
        tuple(data.draw(st.sampled_from(space.ranks)) for _ in range(n)),
    )
    assert space.decode(*space.encode(plan)) == plan
    assert Plan.from_key(plan.key) == plan


def test_a_plan_of_another_length_is_refused(space):
    with pytest.raises(ValueError, match="the plan has 2 groups, the space has 6"):
        space.encode(Plan((2, 3), (4, 4)))


def test_a_choice_outside_the_space_is_refused_with_the_groups_name(space):
    plan = Plan((4,) * 6, (4, 4, 5, 4, 4, 4))
    with pytest.raises(ValueError, match=r"group 'layers.2': rank 5 is not one of \(4, 8, 16\)"):
        space.encode(plan)
    assert not space.contains(plan)


def test_a_group_may_narrow_its_choices():
    linear = Linear(name="a", out_features=8, in_features=8)
    space = SearchSpace(groups=(Group(name="a", linears=(linear,), bits=(8,), ranks=(0,)),), bits=(4, 8), ranks=(0, 4))
    assert space.uniform(8, 0) == Plan((8,), (0,))
    assert space.uniform(4, 0) is None
    assert space.uniform_plans() == [Plan((8,), (0,))]


def test_group_names_must_be_unique():
    group = Group(name="a", linears=(Linear(name="x", out_features=2, in_features=2),))
    with pytest.raises(ValidationError, match="occur twice: a"):
        SearchSpace(groups=(group, group))


def test_choices_are_sorted_and_must_be_distinct():
    assert make_space(bits=(8, 2)).bits == (2, 8)
    with pytest.raises(ValidationError, match="distinct"):
        make_space(bits=(2, 2))


def test_uniform_plans_come_cheapest_first(space):
    sizes = [space.memory_bytes(p) for p in space.uniform_plans()]
    assert sizes == sorted(sizes) and len(sizes) == 12


def test_the_signature_tells_spaces_apart_and_is_stable():
    assert make_space().signature == make_space().signature
    assert make_space().signature != make_space(fixed_bytes=1).signature
    assert make_space().signature != make_space(ranks=(4, 8)).signature


def test_a_plan_needs_as_many_ranks_as_bits():
    with pytest.raises(ValueError, match="got 2 bits, 1 ranks"):
        Plan((2, 3), (4,))


def test_a_plan_is_encoded_by_each_space_as_it_stands_in_that_space():
    narrow, wide = make_space(bits=(2, 4), ranks=(4, 8)), make_space(bits=(2, 3, 4), ranks=(4, 8))
    plan = narrow.uniform(4, 8)
    for space, level in ((narrow, 1), (wide, 2), (narrow, 1)):
        b, r = space.encode(plan)
        assert set(b) == {level} and set(r) == {1}
        b[:] = 0  # the caller's own copy
        assert (space.encode_many([plan, plan])[0] == level).all()


@given(
    st.from_regex(r"[0-9]{1,5}(,[0-9]{1,5}){0,3}\|[0-9]{1,5}(,[0-9]{1,5}){0,3}", fullmatch=True)
    | st.text(alphabet="0123456789,|- ٣", max_size=12)
)
def test_a_key_is_read_as_numbers_one_by_one_or_refused_at_once(text):
    first, _, second = text.partition("|")
    try:
        numbers = [tuple(int(part) for part in half.split(",")) for half in (first, second)]
        expected = Plan(*numbers)
    except ValueError:
        with pytest.raises(ValueError):
            Plan.from_key(text)
        return
    plan = Plan.from_key(text)
    assert plan.key == expected.key
    assert (plan.ranks, plan.bits) == (expected.ranks, expected.bits)
    assert hash(Plan.from_key(text)) == hash(expected) and Plan.from_key(text) == expected


def test_a_plan_has_no_other_attributes():
    plan = Plan.from_key("2,3|4,8")
    with pytest.raises(AttributeError, match="width"):
        plan.width  # noqa: B018
    assert pickle.loads(pickle.dumps(plan)) == plan == copy.deepcopy(plan)
