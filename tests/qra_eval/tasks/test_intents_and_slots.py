"""Banking77 and RESTAURANTS-8K as tasks by name."""

from __future__ import annotations

import json

import pytest

from qra_eval.tasks import SPLITS, make_task
from qra_search.errors import BadInput

ROWS = {
    "banking77": [{"text": f"Where is card {i}? ", "label": "card_arrival"} for i in range(40)],
    "restaurant8k": [
        {"text": f"{i} of us", "asked": ["people"] * 2, "slots": {"people": f"{i}"}} for i in range(40)
    ],
}


@pytest.fixture
def folder(tmp_path):
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
def test_rows_are_put_as_documented_and_test_rows_are_in_no_other_split(folder, name, text):
    task = make_task(name, data=folder)
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


def test_what_is_asked_for_has_names(folder):
    row = {"text": "two", "asked": [1], "slots": {}}
    (folder / "restaurant8k_test.jsonl").write_text(json.dumps(row))
    with pytest.raises(BadInput, match=r"line 1: field 'asked' is \[1\], a list of names is needed"):
        make_task("restaurant8k", data=str(folder)).split("test")


def test_restaurant8k_is_read_from_a_folder_only():
    with pytest.raises(BadInput, match="give --data, a folder with restaurant8k_train.jsonl"):
        make_task("restaurant8k")
