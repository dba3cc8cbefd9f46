"""Multiple-choice prompts of each data set, from files and from the hub's forms."""

from __future__ import annotations

import json
import math

import pytest
from tiny_families import tiny_config_model

from qra_eval import hub
from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import SPLITS, make_task

LETTERED = {
    "question": "Why?",
    "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
    "answerKey": "B",
}
HUB_ROWS = {
    "arc_easy": (LETTERED, "Question: Why?\nAnswer:", (" a", " b", " c"), 1),
    "arc_challenge": (
        {**LETTERED, "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "1"},
        "Question: Why?\nAnswer:",
        (" a", " b"),
        0,
    ),
    "openbookqa": ({**LETTERED, "question_stem": "Since", "question": None}, "Since", (" a", " b", " c"), 1),
    "piqa": (
        {"goal": "Fly", "sol1": "x", "sol2": "y", "label": 1},
        "Question: Fly\nAnswer:",
        (" x", " y"),
        1,
    ),
    "boolq": (
        {"passage": "Water is wet.", "question": "is water wet", "label": 1},
        "Water is wet.\nQuestion: is water wet?\nAnswer:",
        (" no", " yes"),
        1,
    ),
}


def from_hub(monkeypatch, name, rows):
    import datasets

    task = make_task(name)
    splits = {"train": rows[len(rows) // 3 :], task.test: rows[: len(rows) // 3]}
    monkeypatch.setattr(hub, "unavailable_reason", lambda *_: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *given: splits if given == task.hub else {})
    return task


def several(row: dict) -> list[dict]:
    """Rows that differ in their question."""
    names = [n for n in ("question", "question_stem", "goal", "ctx_a", "passage") if row.get(n)]
    return [row, *({**row, **{n: f"{i} {row[n]}" for n in names}} for i in range(11))]


@pytest.mark.parametrize("name", HUB_ROWS)
def test_a_row_of_the_hub_becomes_the_harness_prompt(monkeypatch, name):
    row, prompt, choices, label = HUB_ROWS[name]
    if name == "openbookqa":
        row = {key: value for key, value in row.items() if value is not None}
    task = from_hub(monkeypatch, name, several(row))
    examples = [example for split in SPLITS for example in task.split(split)]
    assert len(examples) == 12
    (example,) = [example for example in examples if example.prompt == prompt]
    assert (example.choices, example.label, example.answer) == (choices, label, choices[label])


@pytest.fixture
def folder(tmp_path):
    for split, start in (("train", 0), ("test", 50)):
        rows = [
            {"question": f"q{i}?", "choices": ["yes", "no"], "answer": i % 2}
            for i in range(start, start + 30)
        ]
        for name in ("piqa", "boolq"):
            (tmp_path / f"{name}_{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.mark.parametrize("name", ["piqa", "boolq"])
def test_every_task_reads_files_of_one_form(folder, name):
    task = make_task(name, data=folder)
    assert [len(task.split(split)) for split in SPLITS] == [26, 4, 30]
    assert {e.choices for e in task.split("test")} == {(" yes", " no")}


def test_each_question_has_its_scores(folder):
    task = make_task("piqa", data=folder)
    model = tiny_config_model("llama", vocab_size=258)
    found = task.score_rows(model, byte_tokenizer(), task.split("test"), max_length=64)
    # Of two choices the right one is the likelier where its share is above a half.
    assert found["accuracy"] == [float(loss < math.log(2)) for loss in found["choice_loss"]]
