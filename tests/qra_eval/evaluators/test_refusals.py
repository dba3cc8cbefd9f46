"""Settings and data that the real evaluator refuses, in one line, before a model is loaded; rows are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from evaluators import make_evaluator

from qra_eval import hub
from qra_eval.evaluators import quantized_lora
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.app.evaluator import RowCount
from qra_search.errors import BadInput

CASES: list[tuple[dict[str, Any], str]] = [
    ({"options": {"foo": 3}}, "unknown option of the evaluator 'quantized-lora': 'foo': it takes none"),
    ({"training": {"alfa": 7}}, "training.alfa is not a known field: did you mean alpha?"),
    (
        {"model": {"name": "tiny", "device": "gpu"}},
        "device must be auto, cpu, cuda or cuda:N, got 'gpu'",
    ),
    ({"model": {"name": "rows.jsonl"}}, "rows.jsonl is a file but no .gguf"),
    ({"model": {"name": "text.gguf"}}, "text.gguf is no GGUF file of a known model, or is broken"),
    (
        {"model": {"name": "someone/model"}},
        "the hub does not give it (no route): check its name and the network",
    ),
    ({"task": {"name": "someone/rows"}}, "data set 'someone/rows' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k"}}, "data set 'openai/gsm8k' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k", "data": "none"}}, "none has no gsm8k_test.jsonl: give a folder"),
    ({"task": {"name": "text.gguf"}}, "unknown task 'text.gguf'"),
    ({"task": {"name": "arithmatic"}}, "unknown task 'arithmatic': did you mean arithmetic?"),
    ({"task": {"name": "arithmetic", "options": {"digitz": 3}}}, "'digitz': did you mean digits"),
    ({"task": {"name": "rows.jsonl"}}, "rows.jsonl, line 2"),
    ({"task": {"name": "none.jsonl"}}, "none.jsonl"),
    ({"quantization": {"backend": {2: "reference", 4: "ggup"}}}, "unknown backend 'ggup'"),
    ({"quantization": {"backend": "reference"}, "space": {"bits": (7,)}}, "has no 7 bits"),
    ({"quantization": {"backend": "ggup"}}, "unknown backend 'ggup': did you mean gguf?"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "ans\n')
    (tmp_path / "text.gguf").write_text("this is text")
    monkeypatch.setattr(hub, "unavailable_reason", lambda kind, name: "no route")
    monkeypatch.setenv("QRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("fields", "message"), CASES, ids=[message for _, message in CASES])
def test_a_setting_that_cannot_be_used_is_one_line(
    folder: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as refused:
        QuantizedLoRAEvaluator({"model": {"name": "tiny"}, **fields})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_cache_that_cannot_be_written_to_is_one_line(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    given: dict[str, Any] = {
        "model": {"name": "tiny"},
        "quantization": {"cache": str(folder / "file" / "bank")},
    }
    evaluator = QuantizedLoRAEvaluator({**given, "space": {"bits": (4,), "ranks": (4,)}})
    with pytest.raises(BadInput, match="cannot write to the cache .*file/bank .*: set QRA_CACHE"):
        evaluator.sensitivities()


def build(task, **finetune):
    return make_evaluator(
        "tiny",
        task,
        space={"bits": (4,), "ranks": (4,)},
        training={"max_length": 40, "batch_size": 8},
        evaluation={"steps": 1, "validation_rows": 64},
        finetune=finetune,
        weights=False,
    )


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
        "train": (16, 16),
        "validation": (64, 3),
        "test": (5, 3),
    }
    # A byte is a token: prompt, the answer with a space before it, and the end token.
    lengths = [len(e.prompt) + len(e.answer) + 1 for e in task.split("train")[:16]]
    assert counts["train"] == RowCount(16, 16, sum(n > 40 for n in lengths), max(lengths), available=24)
    epochs = build(str(tmp_path / "x.jsonl"), epochs=3)
    assert epochs.row_counts()["train"].asked == len(task.split("train")) == 24
