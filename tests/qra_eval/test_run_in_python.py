"""A run from Python, with rows at hand, goes on where it stopped."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

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


def test_rows_in_memory_are_given_again_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QRA_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"{a} plus {a} is", "answer": f"{2 * a}."} for a in range(300)]
    first = plan("tiny", rows, memory="75%", out=tmp_path / "run")
    first.close()
    again = open_run(tmp_path / "run", task=rows)
    assert again.make_plan().sensitivities.to_dict() == first.result.sensitivities.to_dict()
    with pytest.raises(BadInput, match="in-memory task: pass it to open_run"):
        open_run(tmp_path / "run").make_plan()
