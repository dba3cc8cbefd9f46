"""GSM8K's prompts, solved examples and scores."""

from __future__ import annotations

import json

import pytest

from qra_eval import hub
from qra_eval.tasks import SPLITS, make_task
from qra_eval.tasks.gsm8k import APART
from qra_search.errors import BadInput


def row(number: int) -> dict[str, str]:
    return {
        "question": f"How much is {number}?",
        "answer": f"It is <<{number}={number}>>{number}.\n#### {number}",
    }


@pytest.fixture
def folder(tmp_path):
    train, test = [row(i) for i in range(60)], [row(i) for i in range(50, 70)]
    for name, rows in (("train", train), ("test", test)):
        (tmp_path / f"gsm8k_{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def questions(examples) -> set[str]:
    return {example.prompt.rpartition("Question: ")[2].removesuffix("\nAnswer:") for example in examples}


def test_prompts_are_those_of_the_harness(folder):
    task = make_task("gsm8k", data=folder)
    for split in SPLITS:
        for example in task.split(split):
            (question,) = questions([example])
            assert example.prompt == f"Question: {question}\nAnswer:"
            number = question.removeprefix("How much is ").removesuffix("?")
            assert example.answer == " " + row(int(number))["answer"]


def test_training_rows_that_are_in_the_test_file_are_left_out(folder):
    task = make_task("gsm8k", data=folder)
    parts = {split: questions(task.split(split)) for split in SPLITS}
    assert parts["test"] == {row(i)["question"] for i in range(50, 70)}
    assert not parts["test"] & (parts["train"] | parts["validation"])
    assert len(parts["train"]) + len(parts["validation"]) == 50 - APART


def test_an_answer_without_a_number_is_named_by_file_and_line(folder):
    path = folder / "gsm8k_train.jsonl"
    path.write_text(json.dumps(row(1)) + '\n\n{"question": "q", "answer": "no number"}\n')
    with pytest.raises(BadInput, match="line 3: the answer has no number after '####'"):
        make_task("gsm8k", data=folder).split("test")


def test_rows_of_the_hub_are_taken_as_they_are(monkeypatch):
    splits = {"train": [row(i) for i in range(40)], "test": [row(i) for i in range(100, 110)]}
    monkeypatch.setattr(hub, "unavailable_reason", lambda *_: None)
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *asked: splits if asked == ("openai/gsm8k", "main") else {}
    )
    task = make_task("gsm8k")
    assert len(task.split("test")) == 10
    assert len(task.split("train")) + len(task.split("validation")) == 40 - APART
