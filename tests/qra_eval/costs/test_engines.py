"""The least bytes of each engine are those of a space planned for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_families import tiny_config

from qra_eval.costs.engines import engine_bytes
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.config import make_config
from qra_search.engines import ENGINES, engine_settings


def shape_only(folder: Path, **sections: Any) -> QuantizedLoRAEvaluator:
    brief = {
        "model": {"name": str(folder)}, "task": {"name": "arithmetic"}, "training": {"max_length": 64},
        "evaluation": {"steps": 1, "validation_rows": 1}, "finetune": {"steps": 1, "test_rows": 1},
    }  # fmt: skip
    return QuantizedLoRAEvaluator(make_config({**brief, **sections}), weights=False)


@pytest.mark.parametrize("name", ENGINES)
def test_the_least_bytes_of_an_engine_are_those_of_a_space_planned_for_it(name: str, tmp_path: Path) -> None:
    tiny_config("llama", layers=2, hidden=256, vocabulary=512).save_pretrained(tmp_path)
    sections: dict[str, dict[str, Any]] = {}
    for field, value in engine_settings(name).items():
        section, _, last = field.partition(".")
        sections.setdefault(section, {})[last] = value
    planned = shape_only(tmp_path, **sections)
    assert engine_bytes(shape_only(tmp_path).quantized)[name] == planned.space.memory.minimum


def test_an_engine_that_takes_no_such_model_says_why(tmp_path: Path) -> None:
    tiny_config("gpt2").save_pretrained(tmp_path)
    found = engine_bytes(shape_only(tmp_path).quantized)
    assert "this model is gpt2" in str(found["llama.cpp"]) and isinstance(found["transformers"], int)
