"""Data as people have it: files of every kind, columns of any name, hub data sets, and one line for what is wrong."""

from __future__ import annotations

import csv
import json

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from qra_eval import hub
from qra_eval.tasks import SPLITS, make_task
from qra_eval.tasks.sources import is_hub_name, read_rows, read_splits
from qra_search.errors import BadInput

ROWS = [{"prompt": f"say, {i}", "answer": f'"{i}"\nend'} for i in range(12)]
ALIEN = [{"q": row["prompt"], "reply": row["answer"], "id": i} for i, row in enumerate(ROWS)]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=2))
    elif path.suffix == ".parquet":
        from pyarrow import Table, parquet

        parquet.write_table(Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_a_file_of_any_kind_gives_the_same_examples(tmp_path, kind):
    task = make_task(write(tmp_path / f"rows.{kind}", ROWS))
    found = {(e.prompt, e.answer) for split in SPLITS for e in task.split(split)}
    assert found == {(row["prompt"], f" {row['answer']}") for row in ROWS}
    named = make_task(write(tmp_path / f"alien.{kind}", ALIEN), columns={"prompt": "q", "answer": "reply"})
    assert all(named.split(split) == task.split(split) for split in SPLITS)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_values_are_what_is_written_and_no_type_is_made_up(tmp_path, kind):
    # `datasets` makes times, fractions and numbers of these.
    values = ["2020-01-01", 4, 4.5, "007", "NA", 2**70]
    rows = read_rows(write(tmp_path / f"x.{kind}", [{"prompt": "p", "answer": value} for value in values]))
    assert [row["answer"] for _, row in rows] == (list(map(str, values)) if kind == "csv" else values)


def test_a_hub_data_set_gives_its_splits_by_their_names_or_those_given(tmp_path, monkeypatch):
    import datasets

    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.csv", ROWS[:8])
    write(folder / "test.csv", ROWS[8:])
    load = datasets.load_dataset
    monkeypatch.setattr("qra_eval.hub.unavailable_reason", lambda *_: None)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda _, subset: load(str(folder), subset, cache_dir=tmp_path / "c")
    )
    found = read_splits("someone/questions")
    assert [row["prompt"] for _, row in found["train"]] == [row["prompt"] for row in ROWS[:8]]
    assert found.keys() == {"train", "test"} and found["test"][0][0].endswith("test row 1")
    turned = make_task("someone/questions", splits={"train": "test", "test": "train"})
    assert {e.prompt for e in turned.split("test")} == {row["prompt"] for row in ROWS[:8]}
    assert turned.name == "jsonl"
    with pytest.raises(
        BadInput, match="must map train, validation, test to splits of the data .train, test."
    ):
        make_task("someone/questions", splits={"train": "sft"}).split("test")


def test_a_data_set_that_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr("qra_eval.hub.unavailable_reason", lambda *_: "no network")
    with pytest.raises(BadInput, match=r"could not be downloaded \(no network\): check its name") as caught:
        make_task("no/thing").split("test")
    assert "\n" not in str(caught.value)


def test_a_name_on_the_hub_is_no_path():
    assert is_hub_name("HuggingFaceH4/no_robots") and is_hub_name("a/b")
    paths = ("rows.jsonl", "data/rows.csv", "squad", "a/b/c", "/data/x", "tests/qra_eval")
    assert not any(map(is_hub_name, paths))


SAY = '{"prompt": "a", "answer": "b"}\n'


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("x.jsonl", SAY + '{"prompt": "c", \n', "x.jsonl, line 2: .* is not JSON"),
        ("x.jsonl", SAY + f'{{"prompt": "a", "answer": {"1" * 5000}}}', "x.jsonl, line 2: .* is not JSON"),
        ("x.jsonl", SAY.encode("utf-16"), r"x.jsonl is not UTF-8 \(.*0xff.*iconv"),
        ("x.jsonl", SAY.encode() + b'{"x": "caf\xe9"}\n', r"x.jsonl is not UTF-8 \(.*0xe9.*iconv"),
        ("x.jsonl", "", "x.jsonl has no rows: give a file"),
        ("x.json", "", "x.json has no rows: give a file"),
        ("x.json", SAY, "x.json holds a dict: a list of objects is needed"),
        ("x.json", "[1]", "x.json, row 1 is 1. A JSON object with named fields is needed"),
        ("x.json", "[", "x.json: .* is not JSON"),
        ("x.json", b'["\xe9"]', "x.json is not UTF-8"),
        ("x.csv", "prompt,answer\n", "x.csv has no rows: give a file"),
        ("x.csv", "prompt,answer\na,b,c\n", "x.csv, line 2: more or fewer fields than the 2 columns"),
        ("x.csv", "prompt;answer\na;b\n", "line 2: the fields 'prompt;answer' are no known form"),
        (
            "x.csv",
            "q,a\nb,c\n",
            "line 2: the fields 'q', 'a' are no known form .*Name your own with --columns",
        ),
        ("x.csv", b"prompt,answer\na,b\nc,\xe9\n", "x.csv is not UTF-8"),
        ("x.parquet", "nothing", "x.parquet cannot be read as a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_file_place_and_mend(tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInput, match=why) as caught:
        make_task(str(tmp_path / name)).split("test")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"columns": {"prompt": "question"}}, "line 1: no column 'question' for prompt, only 'q', 'reply'"),
        (
            {"columns": {"reply": "reply"}},
            "columns: 'reply' is not a field of a row: choose from prompt, question",
        ),
        (
            {"columns": "prompt"},
            "option 'columns' of task .* is 'prompt': input should be a valid dictionary",
        ),
        ({"columns": {"prompt": "q"}}, "the fields 'prompt' are no known form"),
    ],
)
def test_columns_and_options_that_a_file_does_not_have_are_named(tmp_path, options, why):
    path = write(tmp_path / "x.jsonl", ALIEN)
    with pytest.raises(BadInput, match=why):
        make_task(str(path), **options).split("test")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnectionError("no route\nto host"), "no route"),
        (OfflineModeIsEnabled("a long text of the library"), None),
        (None, None),
    ],
)
def test_the_hub_is_asked_once_with_a_time_limit(monkeypatch, answer, reason):
    questions = []

    def ask(self, name, *, timeout):
        questions.append((name, timeout))
        if answer is not None:
            raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", ask)
    assert hub.unavailable_reason("dataset", "someone/thing") == reason
    assert questions == [("someone/thing", hub.TIMEOUT_SECONDS)]
