"""Splits never overlap, keep their order, and cheap ones are prefixes of dear ones; tasks are found by name."""

from __future__ import annotations

import pytest
from evaluators import make_evaluator
from hypothesis import given, settings
from hypothesis import strategies as st

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import SPLITS, Example, Task, make_task, render_example
from qra_eval.tasks.example import split_examples
from qra_eval.tasks.own import TextTask
from qra_search.errors import BadInput

SHARES = {"test": 0.2, "validation": 0.1, "train": 0.7}


def examples(numbers):
    return [Example(str(number), "x") for number in numbers]


@given(st.lists(st.integers(0, 60), min_size=0, max_size=120), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_parts_hold_every_item_once_and_no_key_is_in_two(numbers, seed):
    if len(set(numbers)) < 3:
        with pytest.raises(
            BadInput, match="splits test, validation, train cannot be made, at least 3 are needed"
        ):
            split_examples({"train": examples(numbers)}, seed)
        return
    made = split_examples({"train": examples(numbers)}, seed)
    parts = {name: [int(e.prompt) for e in part] for name, part in made.items()}
    assert sorted(x for part in parts.values() for x in part) == sorted(numbers)
    for name, part in parts.items():
        assert part
        assert all(set(part).isdisjoint(other) for n, other in parts.items() if n != name)


@given(st.sets(st.integers(), min_size=3, max_size=300))
@settings(max_examples=50, deadline=None)
def test_distinct_items_are_shared_out_as_asked_whatever_their_order(numbers):
    parts = split_examples({"train": examples(sorted(numbers))}, shares=SHARES)
    for name, share in SHARES.items():
        assert abs(len(parts[name]) - share * len(numbers)) <= 1.5
    assert split_examples({"train": examples(sorted(numbers, reverse=True))}, shares=SHARES) == parts


@pytest.mark.parametrize(
    "name",
    ["arithmetic", "gsm8k", "banking77", "arc_easy", "arc_challenge", "text"],
)
def test_every_task_is_found_by_its_name(name):
    task = make_task(name, seed=3)
    assert (task.name, task.seed) == (name, 3) and make_task(task) is task


@pytest.mark.parametrize(
    ("task", "options", "why"),
    [
        ("gsm9k", {}, "did you mean gsm8k"),
        ("gsm8k", {"shot": 8}, "unknown option of task 'gsm8k': 'shot': .*choose one of chat"),
        ("a/b.jsonl", {"data": "elsewhere"}, "already holds the data: remove 'elsewhere'"),
        ("arithmetic", {"chat": 50}, "option 'chat' of task 'arithmetic' is 50: input should be"),
        (make_task("arithmetic"), {"chat": True}, "is an object: pass data and options to its constructor"),
        ("in-memory:list", {}, r"in-memory task: pass it to open_run\(\), or save it and plan again"),
        (3, {}, r"task is 3 \(int\): a name, a file, a Dataset"),
        ([{"prompt": "a"}, "b"], {}, "row 2 is 'b'. A JSON object with named fields is needed"),
        ({"dev": []}, {}, "the data has no train split: it has dev"),
    ],
)
def test_a_task_that_cannot_be_made_is_one_line(task, options, why):
    with pytest.raises(BadInput, match=why) as caught:
        make_task(task, **options).split("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy", "arc_challenge"])
def test_the_splits_of_real_data_never_overlap_and_are_fixed_by_the_seed(name, data_folder):
    one, again, other = (make_task(name, data=data_folder, seed=seed) for seed in (0, 0, 1))
    keys = {split: {example.key for example in one.split(split)} for split in SPLITS}
    assert all(keys.values()) and not keys["train"] & keys["validation"]
    assert not (keys["train"] | keys["validation"]) & keys["test"]
    for split in SPLITS:
        assert one.split(split) == again.split(split) != other.split(split)


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy"])
def test_data_that_are_not_there_are_said_to_be_missing(name, tmp_path):
    with pytest.raises(BadInput, match=f"has no {name}_test.jsonl"):
        make_task(name, data=tmp_path).split("test")


def test_a_row_in_two_splits_is_refused():
    splits = {"train": [Example("A  b", "c")], "validation": [], "test": [Example("a b", "c")]}

    class Given(Task):
        name = "given"

        def _load(self):
            return splits

    with pytest.raises(BadInput, match="has the same row in train and in test, 'a b'"):
        Given().split("test")


@pytest.mark.parametrize(("room", "most"), [(200, 12), (16, 8)])
def test_a_long_wanted_answer_leaves_half_of_the_room_to_the_prompt(monkeypatch, room, most):
    task, heard = make_task("arithmetic"), []
    monkeypatch.setattr(task, "max_answer_tokens", lambda examples, tokenizer: 12)
    monkeypatch.setattr(task, "answer_examples", lambda m, t, examples, n, **rest: heard.append(n) or ["1"])
    task.score_rows(None, None, [Example("1 + 1 =", " 2")], max_length=room)
    assert heard == [most]


def test_an_answer_is_no_longer_than_a_row_of_the_training():
    rows = [{"prompt": f"p{i}", "answer": "x" * (500 if i == 3 else 1)} for i in range(40)]
    tuner = make_evaluator("tiny", rows, training={"max_length": 32}).tuner
    assert tuner.rows.task.max_answer_tokens(list(map(make_long, "ab")), tuner.tokenizer) > 500
    assert tuner.count_answer_tokens(list(map(make_long, "ab"))) == 32


def make_long(prompt):
    return Example(prompt, "x" * 500)


CHATML = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("row", "template", "pieces"),
    [
        ({"prompt": "Déjà {}", "answer": "vu"}, None, [("Déjà {}", False), (" vu<|end|>", True)]),
        (
            {"messages": [{"role": "user", "content": "Hi {}"}, {"role": "assistant", "content": "Ho"}]},
            CHATML,
            [("<user>Hi {}<|end|><assistant>", False), ("Ho<|end|>", True)],
        ),
        (
            {"question": "{}?", "choices": ["no", "yes"], "answer": 1},
            None,
            [("Question: {}?\nAnswer:", False), (" yes<|end|>", True)],
        ),
    ],
)
def test_pieces_are_the_text_and_say_what_is_learnt(row, template, pieces):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    task = make_task([{**row, next(iter(row)): _numbered(next(iter(row.values())), i)} for i in range(9)])
    example = task.split("train")[0]
    (number,) = (c for c in example.prompt if c.isdecimal())
    assert render_example(task, tokenizer, 64) == [(text.format(number), learnt) for text, learnt in pieces]
    assert task.make_prompt(example, tokenizer) == pieces[0][0].format(number)


def _numbered(value, i):
    if isinstance(value, str):
        return value.format(i)
    return [{**turn, "content": turn["content"].format(i)} for turn in value]


def test_running_text_is_all_learnt(monkeypatch):
    monkeypatch.setattr(TextTask, "block_characters", 5)
    task = make_task([{"text": f"Line {i}"} for i in range(9)])
    assert [learnt for _, learnt in render_example(task, byte_tokenizer(), 20)] == [True]
