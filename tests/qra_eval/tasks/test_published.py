"""Tasks of published data sets: their prompts, answers and splits, from files and from the hub's forms."""

from __future__ import annotations

import json

import pytest

from qra_eval import hub
from qra_eval.tasks import SPLITS, make_task
from qra_eval.tasks.published import SOLVED_ROWS


def row(number: int) -> dict[str, str]:
    answer = f"It is <<{number}={number}>>{number}.\n#### {number}"
    return {"question": f"How much is {number}?", "answer": answer}


@pytest.fixture
def gsm8k(tmp_path):
    train, test = [row(i) for i in range(60)], [row(i) for i in range(50, 70)]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"gsm8k_{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def questions(examples) -> set[str]:
    return {example.prompt.rpartition("Question: ")[2].removesuffix("\nAnswer:") for example in examples}


def test_prompts_are_the_harness_and_training_rows_of_the_test_file_are_left_out(gsm8k):
    task = make_task("gsm8k", data=gsm8k)
    parts = {split: questions(task.split(split)) for split in SPLITS}
    for example in task.split("test"):
        (question,) = questions([example])
        number = question.removeprefix("How much is ").removesuffix("?")
        assert example.prompt == f"Question: {question}\nAnswer:"
        assert example.answer == " " + row(int(number))["answer"]
    assert parts["test"] == {row(i)["question"] for i in range(50, 70)}
    assert not parts["test"] & (parts["train"] | parts["validation"])
    assert len(parts["train"]) + len(parts["validation"]) == 50 - SOLVED_ROWS


def test_rows_of_the_hub_are_taken_as_they_are(monkeypatch):
    splits = {"train": [row(i) for i in range(40)], "test": [row(i) for i in range(100, 110)]}
    monkeypatch.setattr(hub, "unavailable_reason", lambda *_: None)
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *asked: splits if asked == ("openai/gsm8k", "main") else {}
    )
    task = make_task("gsm8k")
    assert len(task.split("test")) == 10
    assert len(task.split("train")) + len(task.split("validation")) == 40 - SOLVED_ROWS


def test_intents_of_the_hub_have_the_names_that_files_have(monkeypatch):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["card_arrival", "age_limit"])})
    rows = {"text": [f"{i}?" for i in range(20)], "label": [i % 2 for i in range(20)]}
    data = Dataset.from_dict(rows, features=features)
    splits = DatasetDict(train=data.select(range(15)), test=data.select(range(15, 20)))
    monkeypatch.setattr(hub, "unavailable_reason", lambda *_: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *_: splits)
    answers = {e.prompt: e.answer for e in make_task("banking77").split("test")}
    assert (
        answers["Customer: 16?\nIntent:"] == " card arrival"
        and answers["Customer: 15?\nIntent:"] == " age limit"
    )


ROWS = {
    "banking77": [{"text": f"Where is card {i}? ", "label": "card_arrival"} for i in range(40)],
    "restaurant8k": [
        {"text": f"{i} of us", "asked": ["people"] * 2, "slots": {"people": f"{i}"}} for i in range(40)
    ],
}


@pytest.fixture
def utterances(tmp_path):
    for name, rows in ROWS.items():
        for split, some in (("train", rows), ("test", rows[30:])):
            (tmp_path / f"{name}_{split}.jsonl").write_text("\n".join(map(json.dumps, some)))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("banking77", "Customer: Where is card 30?\nIntent: card arrival"),
        (
            "restaurant8k",
            "Booking slots: date, time, people, first_name, last_name.\nAsked for: people\nGuest: 30 of us\n"
            'Slots as JSON: {"people":"30"}',
        ),
    ],
)
def test_rows_are_put_as_documented_and_test_rows_are_in_no_other_split(utterances, name, text):
    task = make_task(name, data=utterances)
    splits = {split: {e.prompt + e.answer for e in task.split(split)} for split in SPLITS}
    assert text in splits.pop("test")
    assert sum(map(len, splits.values())) == 30 and not any(text in some for some in splits.values())


@pytest.mark.parametrize(("name", "answers"), [("banking77", 77), ("restaurant8k", None)])
def test_the_published_data_are_read(data_folder, name, answers):
    if not (data_folder / f"{name}_train.jsonl").is_file():
        pytest.skip(f"no {name}_train.jsonl in {data_folder}")
    task = make_task(name, data=data_folder)
    assert len(task.split("test")) == {"banking77": 3080, "restaurant8k": 3731}[name]
    if answers is not None:
        assert len({example.answer for example in task.split("test")}) == answers


ROW = {"question": "Why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}


@pytest.mark.parametrize(("name", "labels", "key"), [("arc_easy", "AB", "B"), ("arc_challenge", "12", "2")])
def test_a_row_of_the_hub_becomes_the_harness_prompt(monkeypatch, name, labels, key):
    row = {**ROW, "choices": {"text": ["a", "b"], "label": [*labels]}, "answerKey": key}
    task, rows = make_task(name), [{**row, "question": f"{i} Why?"} for i in range(12)]
    splits = {"train": rows[4:], "test": rows[:4]}
    monkeypatch.setattr(hub, "unavailable_reason", lambda *_: None)
    monkeypatch.setattr("datasets.load_dataset", lambda *given: splits if given == task.hub else {})
    examples = [example for split in SPLITS for example in task.split(split)]
    assert {e.prompt for e in examples} == {f"Question: {i} Why?\nAnswer:" for i in range(12)}
    assert {(e.choices, e.answer) for e in examples} == {((" a", " b"), " b")}
