"""Data as people have it: files of every kind, columns of any name, hub data sets, and one line for what is wrong."""

from __future__ import annotations

import csv
import json

import pytest

from qra_eval.tasks import SPLITS, make_task
from qra_eval.tasks.jsonl import JSONLTask, read_examples
from qra_eval.tasks.sources import hub_splits, is_hub_name

ROWS = [{"prompt": f"say, {i}", "answer": f'"{i}"\nend'} for i in range(12)]
ALIEN = [{"q": row["prompt"], "reply": row["answer"], "id": i} for i, row in enumerate(ROWS)]


def write_table(path, rows, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        write_table(path, rows, "\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_file_of_any_kind_gives_the_same_examples(tmp_path, kind):
    plain = read_examples(write(tmp_path / f"rows.{kind}", ROWS))
    assert [(e.prompt, e.answer) for e in plain] == [(r["prompt"], f" {r['answer']}") for r in ROWS]
    named = write(tmp_path / f"alien.{kind}", ALIEN)
    assert read_examples(named, {"prompt": "q", "answer": "reply"}) == plain
    task = make_task(str(named), columns={"prompt": "q", "answer": "reply"})
    assert sum(len(task.split(split)) for split in SPLITS) == len(ROWS)


def test_a_folder_may_have_files_of_any_kinds(tmp_path):
    write(tmp_path / "train.csv", ROWS[:8])
    write(tmp_path / "test.parquet", ROWS[8:])
    task = make_task("jsonl", data=tmp_path)
    assert {e.prompt for e in task.split("test")} == {row["prompt"] for row in ROWS[8:]}


def test_a_hub_data_set_gives_its_splits_by_their_names_or_those_given(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.csv", ROWS[:8])
    write(folder / "test.csv", ROWS[8:])
    found = hub_splits(str(folder))
    assert [row["prompt"] for _, row in found["calibration"]] == [row["prompt"] for row in ROWS[:8]]
    assert found.keys() == {"calibration", "test"} and found["test"][0][0].endswith("test row 1")
    turned = hub_splits(str(folder), splits={"calibration": "test", "test": "train"})
    assert len(turned["calibration"]) == 4 and len(turned["test"]) == 8
    with pytest.raises(ValueError, match="has no split 'sft' for calibration: it has train, test"):
        hub_splits(str(folder), splits={"calibration": "sft"})
    monkeypatch.setattr("qra_eval.tasks.jsonl.hub_splits", lambda name, *more: hub_splits(str(folder), *more))
    task = make_task("someone/questions", splits={"test": "test"})
    assert {e.prompt for e in task.split("test")} == {row["prompt"] for row in ROWS[8:]}


def test_a_data_set_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="could not be downloaded .*: check its name and the network") as caught:
        hub_splits(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_is_no_path():
    assert is_hub_name("HuggingFaceH4/no_robots") and is_hub_name("a/b")
    assert not any(map(is_hub_name, ("rows.jsonl", "data/rows.csv", "squad", "a/b/c", "/data/x", "tests/qra_eval")))


SAY = '{"prompt": "a", "answer": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.jsonl", "[" + SAY + "]", "is a JSON array, and .jsonl has one object a line: rename it to x.json"),
        ("x.jsonl", SAY + '{"prompt": "c", \n', "x.jsonl, line 2: .* is not JSON"),
        ("x.jsonl", SAY.encode() + b'{"prompt": "caf\xe9"}\n', r"line 2: is not UTF-8 \(byte 0xe9\).*iconv -f latin1"),
        ("x.jsonl", "", "x.jsonl has no rows: it is empty"),
        ("x.json", "", "x.json has no rows: it is empty"),
        ("x.json", SAY, "x.json holds a dict: a list of objects is needed"),
        ("x.json", "[1]", "x.json, row 1 is a int: an object is needed"),
        ("x.json", "[", "x.json is not JSON"),
        ("x.json", b'["\xe9"]', "x.json, line 1: is not UTF-8"),
        ("x.csv", "", "x.csv has no rows: it is empty"),
        ("x.csv", "prompt,answer\n", "x.csv has no rows: it is empty"),
        ("x.csv", "prompt,answer\na,b,c\n", "x.csv, line 2: 3 fields, the first line names 2 columns: put texts"),
        ("x.csv", "prompt;answer\na;b\n", "line 2: fields are 'prompt;answer'; allowed are"),
        ("x.csv", "q,a\nb,c\n", "line 2: fields are 'q', 'a'; allowed are .*; name others by --columns prompt="),
        ("x.csv", b"prompt,answer\na,b\nc,\xe9\n", "x.csv, line 3: is not UTF-8"),
        ("x.parquet", "nothing", "x.parquet is no Parquet file"),
        ("x.parquet", "", "x.parquet has no rows"),
        ("x.jsonl", '{"conversations": [{"from": "bot2", "value": "x"}]}', "turn 1: from is 'bot2', allowed are"),
        ("x.jsonl", '{"conversations": [{"value": "x"}]}', "turn 1: no field 'from'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line_with_file_place_and_mend(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=why) as caught:
        make_task(str(tmp_path / name)).split("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"prompt": "question", "answer": "reply"}, "line 1: no column 'question' for prompt, only 'q', 'reply', 'id'"),
        ({"reply": "reply"}, "columns: 'reply' is no field of a row, they are prompt, question"),
        ("prompt", "columns are a mapping"),
        ({"prompt": "q"}, "fields are 'prompt'; allowed are"),
    ],
)
def test_columns_that_are_not_there_are_named_with_those_that_are(tmp_path, columns, why):
    path = write(tmp_path / "x.jsonl", ALIEN)
    with pytest.raises(ValueError, match=why):
        JSONLTask(str(path), columns=columns).split("test")


def test_a_data_sets_options_are_refused_for_a_file(tmp_path):
    with pytest.raises(ValueError, match="subset and splits are of a data set on the hub"):
        JSONLTask(str(write(tmp_path / "x.jsonl", ROWS)), subset="main")
