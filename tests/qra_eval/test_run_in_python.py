"""A run from Python, with a live model and rows at hand, is what the commands make of the same weights and rows."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runner import Qra

from qra_eval.models.load import load_model
from qra_search import BadInput, open_run, plan
from qra_search.app.folder import RunFolder

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "from_python.py"
TIMES = re.compile(r'("[a-z_]*(?:seconds|_at|pid|writer)"): ?[^,}]+(?=[,}])')
"""Fields of JSON that hold a time or who wrote."""
NAMES = re.compile(r"in-memory:\w+")
ADDRESS = re.compile(r'"base_model_name_or_path": (null|"[^"]*")')
OTHER = {"report.html", "trials.jsonl.lock"}
"""Files that hold times."""
SETTINGS = ["evaluation.steps=3", "finetune.steps=6", "finetune.test_rows=16"]


def contents(folder: Path, *places: Path) -> dict[str, Any]:
    """The files of a run: JSON and text without times, checksums and the names of model and task; others as bytes."""
    found: dict[str, Any] = {}
    records = RunFolder(folder).records()
    ids = {record.id: f"tuning-{i}" for i, record in enumerate(records)}  # follow from the names
    for file in sorted(f for f in folder.rglob("*") if f.is_file() and "exports" not in f.parts):
        if file.name in OTHER:
            continue
        name = str(file.relative_to(folder))
        for id, number in ids.items():
            name = name.replace(id, number)
        if file.suffix in (".json", ".jsonl", ".yaml"):
            text = TIMES.sub(r"\1: 0", NAMES.sub("NAME", file.read_text()))
            for place in (folder, *places):
                text = text.replace(str(place), "NAME")
            text = re.sub(r'"(started|command|crc|digest|id|tuning)": ?"[^"]*"', "", text)
            text = text.replace("'NAME'", "NAME")
            found[name] = " ".join(ADDRESS.sub("", text).split())  # YAML is folded by the length of a path
        else:
            found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of the example's run, and its namespace."""
    folder = tmp_path_factory.mktemp("python")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QRA_CACHE", str(folder / "cache"))
        tiny = load_model("tiny")
        for saved in (tiny.model, tiny.tokenizer):
            saved.save_pretrained(folder / "model")
        patch.setattr(sys, "argv", [str(EXAMPLE), str(folder / "model"), str(folder / "run")])
        return folder, runpy.run_path(str(EXAMPLE), run_name="__main__")


def test_the_commands_leave_the_same_folder(example: Any, monkeypatch: pytest.MonkeyPatch, qra: Qra) -> None:
    folder, names = example
    monkeypatch.setenv("QRA_CACHE", str(folder / "cache"))
    model, data = folder / "model", folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in names["rows"]()))
    run, sets = folder / "commands", [part for s in SETTINGS for part in ("--set", s)]
    for words in (
        ["plan", "--model", model, "--task", data, "--memory", "75%", "--out", run, *sets],
        ["search", run, "--evaluations", 3],
        ["finetune", run],
        ["report", run],
    ):
        done = qra(*words)
        assert done.status == 0, done.err
    python, commands = contents(folder / "run"), contents(run, model, data)
    assert python.keys() == commands.keys()
    assert [name for name in python if python[name] != commands[name]] == []


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
