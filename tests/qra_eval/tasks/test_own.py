"""A user's rows are read in all forms, split without leaks, and refused by line; running text is cut into blocks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import SPLITS, make_task
from qra_eval.tasks.example import make_example
from qra_eval.tasks.own import TextTask
from qra_search.errors import BadInput

HI, HO = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Ho"}]
ARC = {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}
SING = "### Instruction:\nSing.\n\n"


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
        ({"prompt": "Who?", "answer": {"n": 2, "day": "Sunday"}}, "Who?", ' {"n":2,"day":"Sunday"}'),
        ({"question": "How many?", "answer": 4, "choices": None}, "How many?", " 4"),
        (
            {"instruction": "Sing.", "input": "A", "output": "La"},
            f"{SING}### Input:\nA\n\n### Response:\n",
            "La",
        ),
        ({"instruction": "Sing.", "output": "La"}, f"{SING}### Response:\n", "La"),
        ({"instruction": "Sing.", "input": "", "output": "La"}, f"{SING}### Response:\n", "La"),
        ({"messages": [*HI, *HO]}, "User: Hi\nAssistant:", " Ho"),
        ({"prompt": "Pick:\n", "choices": ["x", "y"], "answer": 1}, "Pick:\n", "y"),
        ({**ARC, "answer": 1}, "Question: Why?\nAnswer:", " y"),
    ],
)
def test_the_forms_of_a_row(row, prompt, answer):
    example = make_example(row, "x")
    assert (example.prompt, example.answer) == (prompt, answer)
    assert len(example.messages) == 1


def test_a_column_of_arrays_is_no_missing_field():
    row = {"prompt": "p", "answer": "a", "embedding": np.zeros(3), "score": float("nan")}
    assert make_example(row, "row 1").answer == " a"


def test_chats_keep_their_turns_for_the_chat_template():
    turns = [{"role": "system", "content": "Be brief."}, *HI, *HO, *HI]
    chat = make_example({"messages": [*turns, {"role": "assistant", "content": "No"}]}, "x")
    assert list(chat.messages) == turns and chat.answer == " No"
    alpaca = make_example({"instruction": "Add.", "input": "2, 2", "output": "4"}, "x")
    assert alpaca.messages == ({"role": "user", "content": "Add.\n\n2, 2"},)


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ({"question": "Why?", "choices": ["x", "y"], "answer": 0}, 0),
        ({"question": "Why?", "options": ["x", "y"], "answer": "y"}, 1),
        ({"prompt": "Question: Why?\nAnswer:", "choices": ["x", "y"], "answer": " y "}, 1),
        ({**ARC, "answerKey": "B"}, 1),
        ({**ARC, "answer": "A"}, 0),
        ({**ARC, "answer": "y"}, 1),
        ({**ARC, "answer": 1}, 1),
    ],
)
def test_an_answer_among_choices_is_an_index_a_label_or_a_text(row, label):
    example = make_example(row, "x")
    assert (example.prompt, example.choices) == ("Question: Why?\nAnswer:", (" x", " y"))
    assert example.answer == (" x", " y")[label]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("not json", "'not json' is not JSON"),
        ('["a"]', "not a JSON object"),
        (
            {"text": "a"},
            r"fields 'text' are no known form of a row \(\{\"prompt\", \"answer\"\}.* use --task text",
        ),
        ({"prompt": "a", "answer": ""}, "field 'answer' must be a text or a number, got ''"),
        ({"prompt": True, "answer": "b"}, "field 'prompt' must be a text or a number, got True"),
        ({"instruction": "a"}, "no field 'output'"),
        ({"messages": ["hi"]}, "message 1 is 'hi': give an object with role and content"),
        ({"messages": [{"role": "bot2", "content": "x"}]}, "role must be one of system, user.*, got 'bot2'"),
        ({"messages": [*HI, {**HO[0], "tool_calls": [{}]}]}, "message 2 has tool_calls, which are not"),
        ({"messages": HI}, "the last must be the assistant's"),
        ({"prompt": "p", "answer": None}, "the fields 'prompt' are no known form"),
        (
            {"conversations": [{"from": "bot2", "value": "x"}]},
            "message 1: from must be one of .*, got 'bot2'",
        ),
        ({"question": "q", "choices": ["a", " "], "answer": 0}, "choices must be a list of texts"),
        (
            {"question": "q", "choices": ["a", "b"], "answer": 2},
            r"answer is 2, but .* \(0 to 1\), .*--columns",
        ),
        ({"question": "q", "choices": ["a", "b"], "answer": "0"}, "answer is '0', but the row has choices"),
        ({"question": "q", "choices": ["a", "a"], "answer": "a"}, "the text or the label of exactly one"),
        ({**ARC, "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answer": 1}, "answer is 1"),  # which?
        (
            {**ARC, "choices": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"},
            "choices must be a list of texts, or lists",
        ),
    ],
)
def test_a_bad_row_gives_file_line_what_was_found_and_what_is_allowed(tmp_path, row, why):
    path = write(tmp_path / "x.jsonl", [{"prompt": "a", "answer": "b"}, "", row])
    with pytest.raises(BadInput, match=why) as caught:
        make_task(str(path)).split("test")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert f"{path}, line 3" in str(caught.value)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "first", "answer": "a", "id": 7}, *prompts(range(40))],
        [{"messages": [*HI, {"role": "assistant", "content": f"{i}"}, *HI, *HO]} for i in range(9)],
        [{**ARC, "question": f"{i}?", "answerKey": "B"} for i in range(9)],
    ],
    ids=["prompts", "messages", "choices"],
)
def test_rows_in_python_are_those_of_a_file(tmp_path, rows):
    import datasets

    path = write(tmp_path / "x.jsonl", rows)
    file = make_task(path, seed=3)
    for given in (rows, datasets.Dataset.from_list(rows)):
        task = make_task(given, seed=3)
        assert all(task.split(split) == file.split(split) for split in SPLITS)


def test_the_splits_of_a_dataset_dict_are_kept_and_named_by_the_usual_names_or_those_given():
    import datasets

    data = datasets.DatasetDict(
        train=datasets.Dataset.from_list(prompts(range(30))).with_format("torch"),
        dev=datasets.Dataset.from_list(prompts(range(30, 40))),
        held=datasets.Dataset.from_list(prompts(range(40, 50))),
    )
    task = make_task(data, splits={"test": "held"})
    numbers = {split: {int(e.prompt.split()[1]) for e in task.split(split)} for split in SPLITS}
    assert numbers == {"train": {*range(30)}, "validation": {*range(30, 40)}, "test": {*range(40, 50)}}
    for wrong in ({"test": "none"}, {"tset": "held"}):
        with pytest.raises(
            BadInput, match="must map train, validation, test to splits of the data .train, dev, held."
        ):
            make_task(data, splits=wrong).split("test")


def test_a_file_of_choices_learns_the_right_one(tmp_path):
    rows = [{"question": f"{i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(40)]
    path = write(tmp_path / "x.jsonl", rows)
    task = make_task(str(path))
    assert [len(task.split(split)) for split in SPLITS] == [32, 4, 4]
    assert {e.answer for split in SPLITS for e in task.split(split)} == {" yes", " no"}
    plain = make_task(str(path), columns={"prompt": "question", "answer": "answer"})
    assert {e.answer for e in plain.split("test")} <= {" 0", " 1"} and plain.judged_by == "exact_match"


def test_none_at_all_is_refused(tmp_path):
    with pytest.raises(BadInput, match="has no rows to train on: give a file, or a folder with train.jsonl"):
        make_task(str(tmp_path / "none.jsonl")).split("test")
    with pytest.raises(BadInput, match="needs data"):
        make_task("jsonl")
    with pytest.raises(BadInput, match="has no rows to train on: give a file, or a folder with train.jsonl"):
        make_task("jsonl", data=tmp_path).split("test")


def test_one_file_is_split_in_three_and_duplicates_fall_together(tmp_path):
    rows = prompts(range(50)) + [{"prompt": f"  Number {i} ", "answer": "again"} for i in range(50)]
    task = make_task(str(write(tmp_path / "x.jsonl", rows)))
    keys = {split: {example.key for example in task.split(split)} for split in SPLITS}
    assert [len(keys[split]) for split in SPLITS] == [40, 5, 5]
    assert sum(len(task.split(split)) for split in SPLITS) == 100
    assert len(set.union(*keys.values())) == 50
    rows = [{"question": "Pick the fruit", "choices": [f"a {i}", f"b {i}"], "answer": 0} for i in range(40)]
    task = make_task(rows)  # of one wording with other choices
    assert [len(task.split(split)) for split in SPLITS] == [32, 4, 4]


def test_too_few_rows_to_split_are_refused_with_the_file(tmp_path):
    path = write(tmp_path / "x.jsonl", prompts(range(2)) * 5)
    with pytest.raises(BadInput, match="x.jsonl: of 2 different prompts .* cannot be made, at least 8"):
        make_task(str(path)).split("test")


def test_separate_files_are_kept_apart(tmp_path):
    write(tmp_path / "train.jsonl", prompts(range(30)))
    write(tmp_path / "valid.jsonl", prompts(range(25, 40)))
    write(tmp_path / "test.jsonl", prompts(range(20, 26)))
    task = make_task("jsonl", data=tmp_path)
    numbers = {split: {int(e.prompt.split()[1]) for e in task.split(split)} for split in SPLITS}
    assert numbers == {"test": {*range(20, 26)}, "validation": {*range(26, 40)}, "train": {*range(20)}}


def test_a_test_file_alone_leaves_validation_to_be_split_off_the_rest_of_train(tmp_path):
    write(tmp_path / "train.jsonl", prompts(range(9)))
    write(tmp_path / "test.jsonl", prompts(range(9)))
    with pytest.raises(BadInput, match="of 0 different prompts the splits validation, train cannot be made"):
        make_task("jsonl", data=tmp_path).split("train")
    write(tmp_path / "train.jsonl", prompts(range(90)))
    write(tmp_path / "test.jsonl", prompts(range(200, 210)))
    task = make_task("jsonl", data=tmp_path)
    assert [len(task.split(split)) for split in SPLITS] == [80, 10, 10]


TOKENIZER = byte_tokenizer()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(TextTask, "block_characters", 200)


def paragraphs(start, stop):
    return [f"Paragraph {i} tells of the number {i}." for i in range(start, stop)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(paragraphs(0, 400)))
    return path


def test_a_file_is_split_by_blocks_of_whole_paragraphs(file):
    task = make_task("text", data=file)
    found = {split: [p for e in task.split(split) for p in e.answer.split("\n\n")] for split in SPLITS}
    assert sorted(p for part in found.values() for p in part) == sorted(paragraphs(0, 400))
    assert all(len(found[split]) == pytest.approx(40, abs=6) for split in ("test", "validation"))
    lengths = [len(example.answer) for split in SPLITS for example in task.split(split)]
    assert sum(length < 200 for length in lengths) <= 1 and max(lengths) < 300


def test_rows_are_full_and_together_hold_the_text(file):
    task = make_task("text", data=file)
    examples = task.split("test")
    rows = list(task.encode(examples, TOKENIZER, 64))
    assert all(len(row) == 64 for row in rows[:-1])
    assert all(torch.equal(row.input_ids, row.labels) for row in rows)
    text = "\n\n".join(example.answer for example in examples)
    assert "".join(TOKENIZER.decode(row.input_ids) for row in rows) == text[: sum(map(len, rows))]
    fewer = list(task.encode(examples[:3], TOKENIZER, 64))
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(fewer[:-1], rows, strict=False))


def test_a_text_file_keeps_its_lines_and_is_parted_at_blank_ones(tmp_path):
    code = "".join(
        f"def f{i}(x):\n    if x:\n        return {i}\n\n    return -{i}\n\n\n" for i in range(120)
    )
    path = tmp_path / "code.txt"
    path.write_text(code)
    task = make_task("text", data=path)
    answers = [example.answer for split in SPLITS for example in task.split(split)]
    assert all(answer in code for answer in answers)
    assert sum(answer.count("def ") for answer in answers) == 120
    assert max(map(len, answers)) < 400
    path.write_text("\n".join(paragraphs(0, 300)))  # with no blank line at all
    answers = [e.answer for split in SPLITS for e in make_task("text", data=path).split(split)]
    assert sorted(line for answer in answers for line in answer.split("\n")) == sorted(paragraphs(0, 300))
    assert 200 < max(map(len, answers)) < 500


def test_files_of_a_folder_are_the_splits(tmp_path):
    parts = {"train": (0, 300), "valid": (300, 340), "test": (340, 380)}
    for name, (start, stop) in parts.items():
        (tmp_path / f"{name}.txt").write_text("\r\n".join(paragraphs(start, stop)))
    task = make_task("text", data=tmp_path)
    lines = {split: [line for e in task.split(split) for line in e.answer.split("\n")] for split in SPLITS}
    assert lines["test"] == paragraphs(340, 380)
    assert sorted(lines["validation"]) == sorted(paragraphs(300, 340))
    assert sorted(lines["train"]) == sorted(paragraphs(0, 300))


def test_rows_of_json_are_paragraphs(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [{"text": p} for p in paragraphs(0, 200)]
    path.write_text("\n".join(map(json.dumps, rows)))
    task, given = make_task("text", data=path), make_task(rows)
    assert sum(e.answer.count("Paragraph") for split in SPLITS for e in task.split(split)) == 200
    assert all(given.split(split) == task.split(split) for split in SPLITS)
    for name, content in (("y.json", json.dumps(rows)), ("z.csv", "text\n" + "\n".join(paragraphs(0, 200)))):
        (tmp_path / name).write_text(content)
        other = make_task("text", data=tmp_path / name)
        assert all(other.split(split) == task.split(split) for split in SPLITS)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "has no text"), (b" \n\n", "has no text"), (b"\xff\xfe", "x.txt is not UTF-8")],
)
def test_a_file_without_text_is_refused(tmp_path, content, why):
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(BadInput, match=why):
        make_task("text", data=tmp_path / "x.txt").split("test")
