"""A run from Python, with a live model and rows at hand, is what the commands make of the same weights and rows."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch

from qra_eval.models.load import load_model
from qra_search import BadInput, open_run, plan
from qra_search.app.folder import RunFolder

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "from_python.py"


def test_the_example_plans_tunes_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_CACHE", str(tmp_path / "cache"))
    tiny = load_model("tiny")
    for saved in (tiny.model, tiny.tokenizer):
        saved.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "model"), str(tmp_path / "run")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert RunFolder(tmp_path / "run").records() and (tmp_path / "run" / "exports").is_dir()


def test_the_model_is_left_as_it_was_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_CACHE", str(tmp_path / "cache"))
    tiny = load_model("tiny")
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    modules = [type(module) for module in tiny.model.modules()]
    rows = [{"prompt": f"{a} plus {a} is", "answer": f"{2 * a}."} for a in range(300)]
    first = plan(tiny.model, rows, tokenizer=tiny.tokenizer, memory="75%", out=tmp_path / "run")
    first.close()
    assert [type(module) for module in tiny.model.modules()] == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny.model.state_dict().items())
    again = open_run(tmp_path / "run", model=tiny.model, tokenizer=tiny.tokenizer, task=rows)
    assert again.choose_plan().sensitivities.to_dict() == first.result.sensitivities.to_dict()
    other = load_model("tiny")
    with torch.no_grad():
        next(other.model.parameters()).add_(1.0)
    changed = open_run(tmp_path / "run", model=other.model, tokenizer=other.tokenizer, task=rows)
    with pytest.raises(BadInput, match="weights"):
        changed.choose_plan()
    with pytest.raises(BadInput, match="is a run of model in-memory:LlamaForCausalLM, not tiny"):
        open_run(tmp_path / "run", model="tiny")
    with pytest.raises(BadInput, match="in-memory task: pass it to open_run"):
        open_run(tmp_path / "run", model=tiny.model, tokenizer=tiny.tokenizer).choose_plan()
