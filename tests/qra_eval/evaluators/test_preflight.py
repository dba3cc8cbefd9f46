"""What is refused of a config before any library that takes seconds is loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qra_eval import hub
from qra_eval.evaluators.preflight import check
from qra_search.config import make_config

CASES = [
    ({"options": {"foo": 3}}, "unknown option of the evaluator 'quantized-lora': 'foo': it takes none"),
    (
        {"model": {"name": "tiny", "device": "gpu"}},
        "device is 'gpu': auto, cpu, cuda, cuda:1, or cuda:0,cuda:1 to spread the layers, is needed",
    ),
    ({"model": {"name": "./none"}}, "no file or folder './none'"),
    ({"model": {"name": "none.gguf"}}, "no file or folder 'none.gguf'"),
    ({"model": {"name": "rows.jsonl"}}, "rows.jsonl is a file but no .gguf"),
    ({"model": {"name": "."}}, "is no model folder: it has no config.json"),
    ({"model": {"name": "text.gguf"}}, "text.gguf is no GGUF file"),
    ({"model": {"name": "neox"}, "engine": "llama.cpp"}, "phi, phi3, and this model is gpt_neox"),
    ({"model": {"name": "someone/model"}}, "the hub does not give it (no route): check its name and the network"),
    ({"task": {"name": "someone/rows"}}, "data set 'someone/rows' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k"}}, "data set 'openai/gsm8k' could not be downloaded (no route)"),
    ({"task": {"name": "gsm8k", "data": "none"}}, "none is not a folder"),
    ({"task": {"name": "text.gguf"}}, "text.gguf: data files end in .jsonl, .json, .csv"),
    ({"quantization": {"backend": {2: "reference", 4: ["hqqq", "hqq"]}}}, "unknown backend 'hqqq'"),
    ({"quantization": {"backend": "hqqq"}}, "unknown backend 'hqqq': did you mean hqq?"),
    ({"task": {"name": "arithmatic"}}, "unknown task 'arithmatic': did you mean arithmetic?"),
    ({"task": {"name": "arithmetic", "options": {"digitz": 3}}}, "unknown option 'digitz'"),
    ({"task": {"name": "rows.jsonl"}}, "rows.jsonl, line 2"),
    ({"task": {"name": "none.jsonl"}}, "none.jsonl"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "a", "ans\n')
    (tmp_path / "text.gguf").write_text("this is text")
    (tmp_path / "neox").mkdir()
    (tmp_path / "neox" / "config.json").write_text('{"model_type": "gpt_neox", "num_hidden_layers": 0}')
    (tmp_path / "neox" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    monkeypatch.setattr(hub, "refusal", lambda kind, name: "no route")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("fields", "says"), CASES, ids=[says for _, says in CASES])
def test_what_cannot_be_is_one_line_that_says_what_can(folder: Path, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as refused:
        check(make_config({"model": {"name": "tiny"}, **fields}))
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_a_gpu_where_torch_sees_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from qra_eval.models import device

    monkeypatch.setattr(device, "visible_gpus", list)
    with pytest.raises(ValueError, match="device 'cuda': no CUDA device is visible to torch here: use --device cpu"):
        check(make_config({"model": {"name": "tiny", "device": "cuda"}}))
    monkeypatch.setattr(device, "visible_gpus", lambda: ["cuda:0"])
    check(make_config({"model": {"name": "tiny", "device": "cuda"}}))


def test_what_is_right_passes_and_nothing_of_it_loads_torch(folder: Path) -> None:
    code = (
        "import sys\n"
        "from qra_eval.evaluators.preflight import check\n"
        "from qra_search.config import make_config\n"
        "check(make_config({'model': {'name': 'tiny'}, 'quantization': {'backend': 'mixed-calibrated'}}))\n"
        "print([m for m in ('torch', 'transformers', 'peft', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
