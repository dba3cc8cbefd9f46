"""Settings that the real evaluator refuses, in one line that says what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qra_eval import hub
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.errors import BadInput

CASES: list[tuple[dict[str, Any], str]] = [
    ({"options": {"foo": 3}}, "unknown option of the evaluator 'quantized-lora': 'foo': it takes none"),
    ({"training": {"alfa": 7}}, "training.alfa is no known field: did you mean alpha?"),
    ({"model": {"name": "tiny", "device": "gpu"}}, "device is 'gpu': auto, cpu, cuda, cuda:1, or cuda:0,cuda:1"),
    ({"model": {"name": "rows.jsonl"}}, "rows.jsonl is a file but no .gguf"),
    ({"model": {"name": "text.gguf"}}, "text.gguf is no GGUF file of a known model, or is broken"),
    ({"model": {"name": "someone/model"}}, "the hub does not give it (no route): check its name and the network"),
    ({"task": {"name": "someone/rows"}}, "data set 'someone/rows' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k"}}, "data set 'openai/gsm8k' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k", "data": "none"}}, "none is not a folder"),
    ({"task": {"name": "text.gguf"}}, "text.gguf: data files end in .jsonl, .json, .csv"),
    ({"task": {"name": "arithmatic"}}, "unknown task 'arithmatic': did you mean arithmetic?"),
    ({"task": {"name": "arithmetic", "options": {"digitz": 3}}}, "unknown option 'digitz'"),
    ({"task": {"name": "rows.jsonl"}}, "rows.jsonl, line 2"),
    ({"task": {"name": "none.jsonl"}}, "none.jsonl"),
    ({"quantization": {"backend": {2: "reference", 4: ["hqqq", "hqq"]}}}, "unknown backend 'hqqq'"),
    ({"quantization": {"backend": "reference"}, "space": {"bits": (7,)}}, "has no 7 bits"),
    ({"quantization": {"backend": "hqqq"}}, "unknown backend 'hqqq': did you mean hqq?"),
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
def test_a_setting_that_cannot_be_used_is_one_line(folder: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        QuantizedLoRAEvaluator({"model": {"name": "tiny"}, **fields})
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_cache_that_cannot_be_written_to_is_one_line(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    given: dict[str, Any] = {"model": {"name": "tiny"}, "quantization": {"cache": str(folder / "file" / "bank")}}
    evaluator = QuantizedLoRAEvaluator({**given, "space": {"bits": (4,), "ranks": (4,)}})
    with pytest.raises(BadInput, match="cannot write to the cache .*file/bank .*: set QRA_CACHE"):
        evaluator.sensitivities()
