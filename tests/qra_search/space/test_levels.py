"""A bit-width stored in several ways: each is a choice of its own, in the space, in plans on disk, in every search."""

from __future__ import annotations

import json

import pytest
from qra_backends import storage

from qra_search import Plan, SearchSpace, plugins, search
from qra_search.contracts.scenarios import ToyEvaluator, toy_space
from qra_search.exchange.plans import import_plan
from qra_search.report import words
from qra_search.space.memory import LEVEL_STEP, GroupwiseFormat, level_name, level_width, parse_level
from qra_search.space.serialization import plan_from_dict, plan_to_dict, space_from_dict, space_to_dict

LEVELS = (8, 2, 104, 4)


def two_ways() -> SearchSpace:
    formats = {b: GroupwiseFormat(level_width(b), 32 if b == 104 else 64) for b in LEVELS}
    return SearchSpace(
        groups=toy_space().groups, bits=LEVELS, ranks=(4, 8), formats=formats, backends={4: "nf4", 104: "hqq"}
    )


def test_levels_are_named_and_read():
    assert [level_name(b) for b in (2, 4, 104, 204, 16)] == ["2", "4", "4b", "4c", "16"]
    assert all(parse_level(level_name(b)) == b for b in (2, 4, 104, 204, 16))
    for text in ("", "b", "4a", "104", "4bb", "-4"):
        with pytest.raises(ValueError, match="names no bits"):
            parse_level(text)
    assert (LEVEL_STEP, level_width(104)) == (storage.LEVEL_STEP, storage.level_width(104))


def test_the_space_keeps_them_by_width_with_the_bytes_of_each():
    space = two_ways()
    assert space.bits == (2, 4, 104, 8) and space.widths.tolist() == [2, 4, 4, 8]
    first, second = (space.memory_bytes(Plan((b,) * 5, (4,) * 5)) for b in (4, 104))
    weights = sum(group.weights for group in space.groups)
    assert second - first == weights * 32 // 64 // 8  # groups of 32 have twice the metadata
    plan = Plan((2, 104, 4, 8, 104), (4, 8, 4, 8, 4))
    assert space.decode(*space.encode(plan)) == plan and str(plan) == "Plan(5 groups, mean bits 4.40, mean rank 5.6)"
    assert space.bits_text(104) == "4b bits (hqq)" and space.bits_text(2) == "2 bits"


def test_a_plan_on_disk_says_bits_backend_and_level_and_comes_back(tmp_path):
    space, plan = two_ways(), Plan((2, 104, 4, 8, 104), (4, 8, 4, 8, 4))
    data = json.loads(json.dumps(plan_to_dict(space, plan)))
    assert [(g["bits"], g.get("level"), g.get("backend")) for g in data["groups"]] == [
        (2, None, None), (4, 104, "hqq"), (4, None, "nf4"), (8, None, None), (4, 104, "hqq"),
    ]  # fmt: skip
    assert plan_from_dict(space, data) == plan
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert import_plan(tmp_path / "plan.json", "plan", space).plan == plan
    plain = toy_space(ranks=(4, 8))
    assert import_plan(tmp_path / "plan.json", "plan", plain).plan.bits == (2, 4, 4, 8, 4)


def test_a_plan_of_another_tool_gets_the_first_way_of_its_width(tmp_path):
    space = two_ways()
    names = [linear.name for group in space.groups for linear in group.linears]
    (tmp_path / "bits.json").write_text(json.dumps(dict.fromkeys(names, 4)))
    assert import_plan(tmp_path / "bits.json", "autoround", space).plan.bits == (4,) * 5


def test_the_record_of_a_space_keeps_them():
    space = two_ways()
    copy = space_from_dict(json.loads(json.dumps(space_to_dict(space))))
    assert copy.signature == space.signature and copy.backends == space.backends and copy.bits == space.bits


def test_words_count_bits_and_not_levels():
    assert words.plan_name(Plan((104,), (8,))) == "uniform 4b bits, rank 8"
    assert words.plan_name(Plan((2, 104), (8, 4))) == "mixed, 3.00 bits, rank 6.0"
    assert words.bits_counts(Plan((8, 104, 4, 104), (4,) * 4)) == "1 at 4 bits, 2 at 4b bits, 1 at 8 bits"


@pytest.mark.parametrize("strategy", plugins.names("strategies"))
def test_every_strategy_tries_the_further_way_too(strategy):
    evaluator = ToyEvaluator(toy_space(bits=(2, 4, 104, 8)))
    space = evaluator.space
    budget = (space.memory.minimum + space.memory.maximum) // 2
    options = {"evaluations": 25, "memory_budget": budget, "seed": 1}
    result = search(evaluator, strategy=strategy, **options)
    assert any(104 in trial.plan.bits for trial in result.trials)
    if strategy in ("qra", "additive"):  # these solve for the best: with a true prior, the better way to store 4 bits
        assert 104 in result.best().plan.bits and 4 not in result.best().plan.bits
