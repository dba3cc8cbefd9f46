"""Splits never overlap, keep their order, and cheap ones are prefixes of dear ones; tasks are found by name."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_eval.tasks import SPLITS, Example, Task, make_task
from qra_eval.tasks.base import partition, shuffled, without

SHARES = {"test": 0.2, "validation": 0.1, "calibration": 0.7}


@given(st.lists(st.integers(0, 60), min_size=0, max_size=120), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_parts_hold_every_item_once_and_no_key_is_in_two(items, seed):
    if len(set(items)) < 3:
        with pytest.raises(ValueError, match="distinct examples"):
            partition(items, SHARES, seed, str)
        return
    parts = partition(items, SHARES, seed, str)
    assert sorted(x for part in parts.values() for x in part) == sorted(items)
    for name, part in parts.items():
        assert part
        assert all(set(part).isdisjoint(other) for n, other in parts.items() if n != name)


@given(st.sets(st.integers(), min_size=3, max_size=300))
@settings(max_examples=50, deadline=None)
def test_distinct_items_are_shared_out_as_asked(items):
    parts = partition(sorted(items), SHARES, 0, str)
    for name, share in SHARES.items():
        assert abs(len(parts[name]) - share * len(items)) <= 1.5


def test_parts_depend_on_the_seed_and_not_on_the_order_of_the_items():
    items = list(range(100))
    one = partition(items, SHARES, 0, str)
    assert partition(items[::-1], SHARES, 0, str) == one
    assert partition(items, SHARES, 1, str) != one


def test_a_shuffle_keeps_every_item_and_without_drops_by_key():
    assert sorted(shuffled([3, 1, 2, 3], 0, str)) == [1, 2, 3, 3]
    assert without(["a", "B", "c"], ["b"], str.lower) == ["a", "c"]


def test_examples_are_the_same_to_the_splits_up_to_case_and_white_space():
    assert Example("What  is\nIT? ", "x").key == Example("what is it?", "y").key
    assert Example("", "One").key == Example(" ", " one ").key != Example("", "two").key


class Counted(Task):
    name = "counted"

    def _load(self):
        return {name: [Example(f"{name} {i}", " x") for i in range(20)] for name in SPLITS}


def test_limits_keep_the_first_of_a_split():
    whole, cut = Counted(), Counted(limits={"test": 5})
    assert list(cut.split("test")) == list(whole.split("test"))[:5]
    assert len(cut.split("validation")) == 20
    with pytest.raises(ValueError, match="unknown split 'train'"):
        Counted(limits={"train": 5})


@pytest.mark.parametrize("options", [{"limits": 50}, {"limits": {"test": -1}}, {"limits": {"test": True}},
                                     {"sizes": 50}, {"digits": 3}])  # fmt: skip
def test_an_option_of_the_wrong_kind_is_refused_in_a_line(options):
    with pytest.raises(ValueError, match="at least 1, such as|an option is of the wrong kind in") as caught:
        make_task("arithmetic", **options).split("test")
    assert "\n" not in str(caught.value)


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match="calibration, validation, test"):
        Counted().split("train")


@pytest.mark.parametrize(
    "name",
    [
        "arithmetic",
        "gsm8k",
        "arc_easy",
        "arc_challenge",
        "openbookqa",
        "piqa",
        "winogrande",
        "hellaswag",
        "boolq",
        "text",
    ],
)
def test_every_task_is_found_by_its_name(name):
    assert make_task(name, seed=3).name == name
    assert make_task(name, seed=3).seed == 3


def test_a_path_is_a_jsonl_task(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"p{i}", "answer": "a"}) for i in range(10)))
    task = make_task(str(path), seed=1)
    assert task.name == "jsonl" and sum(len(task.split(name)) for name in SPLITS) == 10
    with pytest.raises(ValueError, match="its own data"):
        make_task(str(path), data="elsewhere")


def test_an_unknown_task_gives_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean gsm8k"):
        make_task("gsm9k")


def test_an_unknown_option_is_named():
    with pytest.raises(ValueError, match="task 'gsm8k': unknown option 'shot'"):
        make_task("gsm8k", shot=8)


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy", "arc_challenge", "openbookqa"])
def test_the_splits_of_real_data_never_overlap(name, data_folder):
    task = make_task(name, data=data_folder)
    keys = {split: {example.key for example in task.split(split)} for split in SPLITS}
    assert all(keys.values())
    assert not keys["calibration"] & keys["validation"]
    assert not (keys["calibration"] | keys["validation"]) & keys["test"]


@pytest.mark.parametrize("name", ["gsm8k", "openbookqa"])
def test_the_splits_of_real_data_are_fixed_by_the_seed(name, data_folder):
    one, again, other = (make_task(name, data=data_folder, seed=seed) for seed in (0, 0, 1))
    for split in SPLITS:
        assert one.split(split) == again.split(split) != other.split(split)
    assert len(one.split("test")) == len(other.split("test"))


@pytest.mark.parametrize(("name", "rows"), [("gsm8k", 1319), ("arc_easy", 2376), ("openbookqa", 500)])
def test_the_test_split_is_the_whole_test_file(name, rows, data_folder):
    assert len(make_task(name, data=data_folder).split("test")) == rows


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy"])
def test_data_that_are_not_there_are_said_to_be_missing(name, tmp_path):
    with pytest.raises(ValueError, match=f"has no {name}_test.jsonl"):
        make_task(name, data=tmp_path).split("test")
    with pytest.raises(ValueError, match="is not a folder"):
        make_task(name, data=tmp_path / "none").split("test")
