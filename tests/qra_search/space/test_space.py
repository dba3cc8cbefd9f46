"""Plans, groups and the codec between plans and level arrays."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from fakes import make_space
from hypothesis import given
from hypothesis import strategies as st

from qra_search import Group, Linear, Plan, SearchSpace
from qra_search.space.memory import Level


@given(st.data())
def test_decode_undoes_encode(data):
    space = make_space(groups=data.draw(st.integers(1, 9)))
    n = len(space)
    plan = Plan(
        tuple(data.draw(st.sampled_from(space.bits)) for _ in range(n)),
        tuple(data.draw(st.sampled_from(space.ranks)) for _ in range(n)),
    )
    assert space.decode(space.encode(plan)) == plan
    assert plan == Plan.from_dict(json.loads(json.dumps(plan.to_dict())))


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
    space = SearchSpace(
        groups=(Group(name="a", linears=(linear,), bits=(8,), ranks=(0,)),), bits=(4, 8), ranks=(0, 4)
    )
    assert space.uniform(8, 0) == Plan((8,), (0,))
    assert space.uniform(4, 0) is None
    assert space.uniform_plans() == [Plan((8,), (0,))]


def test_uniform_plans_come_cheapest_first(space):
    sizes = [space.memory_bytes(p) for p in space.uniform_plans()]
    assert sizes == sorted(sizes) and len(sizes) == 12
    assert make_space(bits=(8, 2)).bits == (2, 8)


def test_the_signature_tells_spaces_apart_and_is_stable():
    assert make_space().signature == make_space().signature
    assert make_space().signature != make_space(fixed_bytes=1).signature
    assert make_space().signature != make_space(ranks=(4, 8)).signature


def test_a_plan_as_text_counts_its_levels():
    assert str(Plan((2, "nf4"), (4, 8))) == "Plan(2 groups: 1 at 2 bits, 1 at nf4; mean rank 6.0)"


def test_a_plan_is_uniform_if_every_group_has_the_same_choice():
    groups = [Group(name=n, linears=(Linear(name=n, out_features=8, in_features=8),)) for n in "ab"]
    space = SearchSpace(groups=groups, bits=(4, Level("nf4", 4)), ranks=(4, 8))
    assert space.uniform_choice(Plan(("nf4", "nf4"), (8, 8))) == ("nf4", 8)
    assert space.uniform_choice(Plan(("nf4", 4), (8, 8))) is None
    assert space.uniform_choice(Plan((4, 4), (8, 4))) is None


@pytest.fixture
def with_a_table() -> SearchSpace:
    groups = [
        Group(name=n, linears=(Linear(name=n, out_features=8, in_features=8),), bits=(2, 4), ranks=(4, 8))
        for n in "ab"
    ]
    table = Linear(name="table", out_features=64, in_features=8)
    groups.append(Group(name="table", linears=(table,), bits=(4, 16), ranks=(0,), is_embedding=True))
    return SearchSpace(groups=groups, bits=(2, 4, 16), ranks=(0, 4, 8))


def test_a_group_aside_takes_the_level_of_a_uniform_plan_or_the_next_wider(with_a_table: SearchSpace):
    plans = with_a_table.uniform_plans()
    assert {with_a_table.uniform_choice(p) for p in plans} == {(2, 4), (2, 8), (4, 4), (4, 8)}
    assert all((p.bits[-1], p.ranks[-1]) == (4, 0) for p in plans)
    assert with_a_table.uniform_choice(Plan((2, 2, 16), (4, 4, 0))) is None, "the table is otherwise"
    assert with_a_table.uniform(16, 4) is None and with_a_table.uniform_ranks == (4, 8)
    assert with_a_table.mean_bits(Plan((2, 4, 16), (4, 8, 0))) == 3 and with_a_table.mean_rank(plans[0]) == 4


def test_lists_and_numpy_numbers_are_kept_as_plain_ones():
    plan = Plan(np.array([2, 4]), [np.int64(8), 4])
    assert plan == Plan((2, 4), (8, 4)) and {type(v) for v in (*plan.bits, *plan.ranks)} == {int}


@pytest.mark.parametrize(
    ("bits", "ranks", "error", "message"),
    [
        *(
            (bits, (4, 4), ValueError, "should be a valid integer|lists with an entry")
            for bits in ("24", 4, {2: 4}, {2, 4}, (2.0, 4.0), (True, 4), (None, 4), ([2], 4))
        ),
        *(((name,), (4,), ValueError, "cannot name a storage level") for name in ("", "a,b", "a|b", "4")),
        ((2, 3), (4,), ValueError, "got 2 and 1"),
    ],
)
def test_choices_that_make_no_plan_are_refused_with_what_does(bits, ranks, error, message):
    with pytest.raises(error, match=message):
        Plan(bits, ranks)


GROUP = Group(name="a", linears=(Linear(name="x", out_features=2, in_features=2),))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": []}, ValueError, "at least one group"),
        ({"groups": [GROUP, GROUP]}, ValueError, "several are called a"),
        (
            {"groups": [replace(GROUP, is_embedding=True)]},
            ValueError,
            "that is not an embedding",
        ),
        ({"ranks": (-1, 4)}, ValueError, "integers from 0 on"),
        ({"bits": (2, 2)}, ValueError, "distinct"),
    ],
)
def test_options_that_make_no_space_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        SearchSpace(**{"groups": [GROUP], **options})
