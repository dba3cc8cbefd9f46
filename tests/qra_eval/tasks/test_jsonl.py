"""A user's rows are read in four forms, split without leaks, and refused by file and line where they are bad."""

from __future__ import annotations

import json

import pytest

from qra_eval.tasks import SPLITS, make_task
from qra_eval.tasks.jsonl import read_examples


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def prompts(rows):
    return [{"prompt": f"number {i}", "answer": f"is {i}"} for i in rows]


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"prompt": "2 + 2 =", "answer": "4"}, "2 + 2 =", " 4"),
        ({"prompt": "2 + 2 = ", "answer": "4"}, "2 + 2 = ", "4"),
        ({"prompt": "Say", "answer": "\nyes"}, "Say", "\nyes"),
        ({"question": "How many?", "answer": 4}, "How many?", " 4"),
        (
            {"instruction": "Add.", "input": "2, 2", "output": "4"},
            "### Instruction:\nAdd.\n\n### Input:\n2, 2\n\n### Response:\n",
            "4",
        ),
        ({"instruction": "Sing.", "output": "La"}, "### Instruction:\nSing.\n\n### Response:\n", "La"),
        ({"instruction": "Sing.", "input": "", "output": "La"}, "### Instruction:\nSing.\n\n### Response:\n", "La"),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
            "User: Hi\nAssistant:",
            " Ho",
        ),
    ],
)
def test_the_four_forms(tmp_path, row, prompt, answer):
    (example,) = read_examples(write(tmp_path / "x.jsonl", [row]))
    assert (example.prompt, example.answer) == (prompt, answer)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "answer": "Arr"}, "Be a pirate.\n\nHi"),
        ({"instruction": "Hi", "output": "Arr"}, "Be a pirate.\n\n### Instruction:\nHi\n\n### Response:\n"),
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Arr"}]},
         "System: Be a pirate.\nUser: Hi\nAssistant:"),
    ],
)  # fmt: skip
def test_a_system_text_beside_them_is_the_first_turn(tmp_path, row, prompt):
    (example,) = read_examples(write(tmp_path / "x.jsonl", [row | {"system": "Be a pirate."}]))
    assert example.prompt == prompt
    assert example.messages == (
        {"role": "system", "content": "Be a pirate."}, {"role": "user", "content": "Hi"},
    )  # fmt: skip
    (same,) = read_examples(write(tmp_path / "x.jsonl", [row | {"system": " "}]))
    assert len(same.messages) == 1


def test_chats_keep_their_turns_for_the_chat_template(tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "More"},
        {"role": "assistant", "content": "No"},
    ]
    rows = [
        {"messages": turns},
        {"instruction": "Add.", "input": "2, 2", "output": "4"},
        {"prompt": "P", "answer": "A"},
    ]
    chat, alpaca, plain = read_examples(write(tmp_path / "x.jsonl", rows))
    assert list(chat.messages) == turns[:-1] and chat.answer == " No"
    assert alpaca.messages == ({"role": "user", "content": "Add.\n\n2, 2"},)
    assert plain.messages == ({"role": "user", "content": "P"},)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("not json", "'not json\\\\n' is not JSON"),
        ('{"prompt": "a", "answer": "b"', "is not JSON"),
        ('["a"]', "not a JSON object"),
        ({"text": "a"}, r"fields are 'text'; allowed are \{\"prompt\", \"answer\"\}"),
        ({}, "fields are none"),
        ({"prompt": "a"}, "fields are 'prompt'; allowed"),
        ({"prompt": "a", "answer": ""}, "'answer' is blank"),
        ({"prompt": " ", "answer": "b"}, "'prompt' is blank"),
        ({"prompt": "a", "answer": None}, "field 'answer' is None, a str or int or float is needed"),
        ({"prompt": ["a"], "answer": "b"}, r"field 'prompt' is \['a'\]"),
        ({"instruction": "a"}, "no field 'output'"),
        ({"instruction": "a", "input": 3, "output": "b"}, "field 'input' is 3, a str is needed"),
        ({"messages": "hi"}, "field 'messages' is 'hi', a list is needed"),
        ({"messages": []}, "must end with an answer of the assistant"),
        ({"messages": ["hi"]}, "message 1 is a str"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role is 'bot', allowed are system, user"),
        (
            {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "message 2 has tool_calls, which are not learnt",
        ),
        ({"messages": [{"role": "user"}]}, "no field 'content'"),
        ({"messages": [{"role": "user", "content": "x"}]}, "must end with an answer"),
    ],
)
def test_a_bad_row_gives_file_line_what_was_found_and_what_is_allowed(tmp_path, row, why):
    path = write(tmp_path / "x.jsonl", [{"prompt": "a", "answer": "b"}, "", row])
    with pytest.raises(ValueError, match=why) as caught:
        read_examples(path)
    assert f"{path}, line 3" in str(caught.value) and "\n" not in str(caught.value)


def test_bytes_that_are_no_utf8_are_named_by_line(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_examples(tmp_path / "x.jsonl")


def test_an_empty_file_and_none_at_all_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no rows"):
        read_examples(write(tmp_path / "x.jsonl", ["", ""]))
    with pytest.raises(ValueError, match="no file or folder"):
        make_task(str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match="needs data"):
        make_task("jsonl")
    with pytest.raises(ValueError, match="has no train.jsonl"):
        make_task("jsonl", data=tmp_path)


def test_one_file_is_split_in_three_and_duplicates_fall_together(tmp_path):
    rows = prompts(range(50)) + [{"prompt": f"  Number {i} ", "answer": "again"} for i in range(50)]
    task = make_task(str(write(tmp_path / "x.jsonl", rows)))
    keys = {split: {example.key for example in task.split(split)} for split in SPLITS}
    assert [len(keys[split]) for split in SPLITS] == [40, 5, 5]
    assert sum(len(task.split(split)) for split in SPLITS) == 100
    assert len(set.union(*keys.values())) == 50


def test_the_split_does_not_depend_on_the_order_of_the_rows(tmp_path):
    rows = prompts(range(40))
    one = make_task(str(write(tmp_path / "a.jsonl", rows)))
    two = make_task(str(write(tmp_path / "b.jsonl", rows[::-1])))
    for split in SPLITS:
        assert one.split(split) == two.split(split)


def test_too_few_rows_to_split_are_refused_with_the_file(tmp_path):
    path = write(tmp_path / "x.jsonl", prompts(range(2)) * 5)
    with pytest.raises(ValueError, match="x.jsonl: 2 distinct examples cannot be split"):
        make_task(str(path)).split("test")


@pytest.mark.parametrize("how", ["options", "folder"])
def test_separate_files_are_kept_apart(tmp_path, how):
    train = write(tmp_path / "train.jsonl", prompts(range(30)))
    valid = write(tmp_path / "valid.jsonl", prompts(range(25, 40)))
    test = write(tmp_path / "test.jsonl", prompts(range(20, 26)))
    if how == "options":
        task = make_task(str(train), validation=str(valid), test=str(test))
    else:
        task = make_task("jsonl", data=tmp_path)
    numbers = {split: {int(e.prompt.split()[1]) for e in task.split(split)} for split in SPLITS}
    assert numbers == {"test": {*range(20, 26)}, "validation": {*range(26, 40)}, "calibration": {*range(20)}}


def test_a_test_file_alone_leaves_validation_to_be_split_off(tmp_path):
    train = write(tmp_path / "mine.jsonl", prompts(range(90)))
    test = write(tmp_path / "other.jsonl", prompts(range(200, 210)))
    task = make_task(str(train), test=str(test))
    assert [len(task.split(split)) for split in SPLITS] == [80, 10, 10]
