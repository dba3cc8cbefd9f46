"""A bit-width stored in several ways: each is a level of its own, in the space, in plans on disk, in every search."""

from __future__ import annotations

import json

import pytest

from qra_search import Group, GroupwiseFormat, Level, Linear, Plan, SearchSpace
from qra_search.app.report import formatting
from qra_search.space.budgets import resolve_budgets
from qra_search.space.serialization import plan_from_dict, plan_to_dict
from qra_search.testing.scenarios import make_toy_space

WAYS = (8, 2, Level("nf4", 4, "bitsandbytes"), Level("hqq-4", 4, "hqq", GroupwiseFormat(4, 32)))
PLAN = Plan((2, "hqq-4", "nf4", 8, "hqq-4"), (4, 8, 4, 8, 4))


def two_ways() -> SearchSpace:
    return make_toy_space(bits=WAYS, ranks=(4, 8))


def test_a_number_is_the_name_of_its_own_width():
    with pytest.raises(ValueError, match="level 4 has width 3"):
        Level(4, 3)


def test_a_level_says_what_it_is():
    assert [str(level) for level in two_ways().levels] == [
        "2 bits",
        "nf4 (4 bits, bitsandbytes)",
        "hqq-4 (4 bits, hqq)",
        "8 bits",
    ]
    assert str(Level("Q4_K", 4)) == "Q4_K (4 bits)"


def test_the_space_keeps_them_by_width_then_as_given_with_the_bytes_of_each():
    space = two_ways()
    assert space.bits == (2, "nf4", "hqq-4", 8) and space.widths.tolist() == [2, 4, 4, 8]
    shuffled = SearchSpace(groups=space.groups, bits=(8, Level("b", 4), 2, Level("a", 4)), ranks=(4,))
    assert shuffled.bits == (2, "b", "a", 8)
    first, second = (space.memory_bytes(space.uniform(name, 4)) for name in ("nf4", "hqq-4"))
    weights = sum(group.weights for group in space.groups)
    assert second - first == weights * 32 // 64 // 8  # groups of 32 have twice the metadata
    assert space.decode(space.encode(PLAN)) == PLAN and space.mean_bits(PLAN) == pytest.approx(
        (2 + 4 + 4 + 8 + 4) / 5
    )


def test_a_level_is_found_by_its_name_and_by_its_width_where_that_has_one():
    space = two_ways()
    assert space.level("nf4").backend == "bitsandbytes" and space.level(8).format == GroupwiseFormat(8)
    with pytest.raises(ValueError, match="several storage formats have 4 bits: choose one of nf4, hqq-4"):
        space.level(4)
    with pytest.raises(ValueError, match="unknown storage level 'nf5': did you mean nf4"):
        space.level("nf5")
    alone = SearchSpace(groups=space.groups, bits=(2, Level("nf4", 4)), ranks=(4, 8))
    assert alone.level(4).name == "nf4" and alone.uniform(4, 8) == alone.uniform("nf4", 8)
    assert resolve_budgets(alone, "uniform4r8") == resolve_budgets(alone, "uniform nf4 r8")


def test_budgets_name_levels():
    space = two_ways()
    assert resolve_budgets(space, "uniformhqq-4r8") == (space.memory_bytes(space.uniform("hqq-4", 8)),)
    assert resolve_budgets(space, "100%") == (
        space.memory_bytes(space.uniform("nf4", 8)),
    )  # the first way of 4 bits
    with pytest.raises(ValueError, match="several storage formats"):
        resolve_budgets(space, "uniform4r8")


def test_groups_are_narrowed_by_names():
    linear = Linear(name="a", out_features=64, in_features=64)
    space = SearchSpace(groups=[Group(name="a", linears=[linear], bits=("nf4", 8))], bits=WAYS, ranks=(4,))
    assert space.bits_allowed.tolist() == [[False, True, False, True]]
    with pytest.raises(ValueError, match=r"group 'a': bits hqq-4 is not one of \('nf4', 8\)"):
        space.encode(Plan(("hqq-4",), (4,)))


def test_numbers_and_levels_of_the_same_bytes_are_one_space():
    plain = make_toy_space(bits=(2, 4))
    assert make_toy_space(bits=(Level(2, 2), Level(4, 4, "hqq"))).signature == plain.signature
    assert make_toy_space(bits=(2, Level("nf4", 4))).signature != plain.signature


def test_a_plan_on_disk_names_its_levels_and_comes_back():
    space = two_ways()
    data = json.loads(json.dumps(plan_to_dict(space, PLAN)))
    assert [(g["bits"], g.get("width"), g.get("backend")) for g in data["groups"]] == [
        (2, None, None),
        ("hqq-4", 4, "hqq"),
        ("nf4", 4, "bitsandbytes"),
        (8, None, None),
        ("hqq-4", 4, "hqq"),
    ]
    assert plan_from_dict(space, data) == PLAN


def test_the_record_of_a_space_keeps_them():
    space = two_ways()
    copy = SearchSpace.from_dict(json.loads(json.dumps(space.to_dict())))
    assert copy.signature == space.signature and copy.bits == space.bits
    assert list(map(str, copy.levels)) == list(map(str, space.levels))


def test_words_count_bits_and_name_levels():
    space = two_ways()
    assert formatting.format_plan(space.uniform("nf4", 8), space) == "uniform nf4, rank 8"
    assert formatting.format_plan(space.uniform(8, 8), space) == "uniform 8 bits, rank 8"
    assert formatting.format_plan(PLAN, space) == "mixed, 4.40 bits, rank 5.6"
    assert formatting.format_level_counts(PLAN, space) == "1 at 2 bits, 1 at nf4, 2 at hqq-4, 1 at 8 bits"
