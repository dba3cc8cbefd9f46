"""Plain text is cut into blocks, and packed without a gap."""

from __future__ import annotations

import json

import pytest
import torch

from qra_eval.models.tiny import byte_tokenizer
from qra_eval.tasks import SPLITS, make_task
from qra_eval.tasks.own import TextTask
from qra_search.errors import BadInput

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
