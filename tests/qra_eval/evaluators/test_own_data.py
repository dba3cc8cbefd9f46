"""A user's data is read before a model is loaded, and its rows are counted as they are tuned on."""

from __future__ import annotations

import json

import pytest
from evaluators import make_evaluator

from qra_eval.evaluators import quantized_lora
from qra_search.evaluation.evaluator import RowCount


def build(task, **finetune):
    return make_evaluator(
        "tiny", task, space={"bits": (4,), "ranks": (4,)}, training={"max_length": 40, "batch_size": 8},
        evaluation={"steps": 1}, finetune=finetune, weights=False,
    )  # fmt: skip


def test_data_are_refused_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(quantized_lora, "load_model", lambda *a, **o: pytest.fail("the model was loaded"))
    (tmp_path / "x.csv").write_text("q,a\n1,2\n")
    with pytest.raises(ValueError, match="x.csv, line 2: fields are 'q', 'a'"):
        build(str(tmp_path / "x.csv"))


def test_rows_asked_for_and_had_and_cut_are_counted(tmp_path):
    rows = [{"prompt": "p" * (20 + i) + str(i), "answer": "yes"} for i in range(30)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluator = build(str(tmp_path / "x.jsonl"), steps=2, test_rows=5)
    counts = evaluator.row_counts()
    task = evaluator.task
    assert {name: (count.asked, count.had) for name, count in counts.items()} == {
        "train": (16, 16), "validation": (64, 3), "test": (5, 3),
    }  # fmt: skip
    # A byte is a token: prompt, the answer with a space before it, and the end token.
    lengths = [len(e.prompt) + len(e.answer) + 1 for e in task.split("train")[:16]]
    assert counts["train"] == RowCount(16, 16, sum(n > 40 for n in lengths), max(lengths))
    epochs = build(str(tmp_path / "x.jsonl"), epochs=3)
    assert epochs.row_counts()["train"].asked == len(task.split("train")) == 24
