"""The evaluator and the task printed in the guides work, word for word as printed there."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qra_eval.models.tiny import make_tiny_model
from qra_search import search
from qra_search.app.config import make_config
from qra_search.testing import EvaluatorContract

DOCS = Path(__file__).parents[2] / "docs"


def printed(page: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """The module whose code the page prints, by the class in it."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    module = f"printed_{name.lower()}"
    (folder / f"{module}.py").write_text(next(code for code in blocks if f"class {name}(" in code))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(module)


class TestWeightError(EvaluatorContract):
    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        return printed("add-an-evaluator.md", "WeightError", tmp_path, monkeypatch)

    @pytest.fixture
    def evaluator(self, module):
        return module.build(make_config({}))

    def test_it_is_searched_to_the_best_plan(self, evaluator):
        budget = (evaluator.space.memory.minimum + evaluator.space.memory.maximum) // 2
        result = search(evaluator, evaluations=15, memory_budget=budget)
        assert result.best().memory_bytes <= budget and result.comparison().change.is_lower

    def test_more_bits_and_more_rank_are_never_worse(self, evaluator):
        assert (np.diff(evaluator.table, axis=1) < 0).all() and (np.diff(evaluator.table, axis=2) <= 0).all()


def test_the_printed_task_splits_encodes_and_scores(tmp_path, monkeypatch):
    module = printed("add-a-task.md", "Backwards", tmp_path, monkeypatch)
    task = module.Backwards(count=200)
    keys = [{example.key for example in task.split(name)} for name in ("train", "validation", "test")]
    assert all(keys) and not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert task.split("test") == module.Backwards(count=200).split("test")
    loaded = make_tiny_model(dtype=torch.float32)
    rows = list(task.encode(task.split("test")[:4], loaded.tokenizer, 64))
    assert len(rows) == 4 and all(any(label != -100 for label in row.labels) for row in rows)
    assert len(task.score_rows(loaded.model, loaded.tokenizer, task.split("test")[:4])["exact_match"]) == 4
    for wrong in ({"data": "words.txt"}, {"longest": 2}):
        with pytest.raises(ValueError):
            module.Backwards(**wrong)


def test_the_names_that_the_readme_imports_are_there():
    from qra_eval import QuantizedLoRAEvaluator, load
    from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator as original

    assert QuantizedLoRAEvaluator is original and callable(load)
