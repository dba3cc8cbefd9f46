"""Arithmetic problems are right, reproducible, and share no sum between splits or seeds."""

from __future__ import annotations

import itertools
import re

import pytest

from qra_eval.tasks import SPLITS, arithmetic
from qra_eval.tasks.arithmetic import ArithmeticTask
from qra_eval.tasks.published import extract_answer
from qra_search.errors import BadInput


@pytest.fixture(scope="module")
def task():
    return ArithmeticTask()


def all_examples(task):
    return [example for split in SPLITS for example in task.split(split)]


def test_every_line_of_every_answer_is_a_true_equation(task):
    for example in all_examples(task):
        *steps, last = example.answer.strip().split("\n")
        for step in steps:
            left, right = step.split(" = ")
            assert eval(left) == int(right)  # noqa: S307 - our own text, digits and operators
            assert re.fullmatch(r"\d+ [-+*/] \d+", left)
        assert last == f"#### {steps[-1].split(' = ')[1]}"
        assert extract_answer(example.answer) == str(example.meta["result"])


def test_no_two_splits_share_operands_whatever_their_seeds():
    drawn = {
        (seed, split): {example.meta["operands"] for example in ArithmeticTask(seed=seed).split(split)}
        for seed in (0, 1, 7)
        for split in SPLITS
    }
    for (one, a), (two, b) in itertools.combinations(drawn.items(), 2):
        if one[1] != two[1]:
            assert not a & b, (one, two)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"data": "somewhere"}, "makes its own problems: leave out the data"),
        ({"kinds": ["totals"]}, "'kinds' of the arithmetic task must be among total, left, .* got totals"),
        ({"digits": []}, r"one or more integers from 1 on, got \[\]"),
        ({"digits": [0]}, "integers from 1 on"),
        (
            {"kinds": ["product"], "digits": [3]},
            "only 0 different train problems exist of these kinds and digits: choose more",
        ),
        (
            {"kinds": ["product"], "digits": [1]},
            "only [0-9]+ different (train|test) problems exist of .*: choose more kinds",
        ),
    ],
)
def test_options_that_nothing_can_be_drawn_by_are_refused(options, why, monkeypatch):
    monkeypatch.setattr(arithmetic, "MAX_BARREN_DRAWS", 500)
    with pytest.raises(BadInput, match=why):
        ArithmeticTask(**options).split("train")


def test_problems_are_of_the_kinds_and_digits_that_were_chosen():
    task = ArithmeticTask(kinds=["total", "left"], digits=[1, 2])
    assert {e.meta["kind"] for e in task.split("test")} == {"total", "left"}
    assert max(max(e.meta["operands"]) for e in task.split("test")) < 100


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 5 * 2 = 10\n#### 10", "10"),
        ("#### 1,234.", "1234"),
        ("#### $-5", None),
        ("#### -5", "-5"),
        ("#### 3\n#### 4", "3"),
        ("none", None),
        ("#### 18\nQuestion: 7", "18"),
    ],
)
def test_the_number_of_an_answer(text, number):
    assert extract_answer(text) == number


def test_a_right_answer_is_not_cut(task, monkeypatch):
    """By a tokenizer of letters, and a model that writes what is wanted until it may write no more."""
    examples = task.split("test")
    monkeypatch.setattr(
        task, "answer_examples", lambda m, t, some, most, **_: [e.answer[:most] for e in some]
    )
    scores = task.score_rows(None, lambda text: {"input_ids": list(text)}, examples)
    assert scores == {"exact_match": [1.0] * len(examples)}
