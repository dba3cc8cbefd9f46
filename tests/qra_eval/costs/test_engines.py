"""The least bytes of each engine are those of a space planned for it; what it cannot take is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_families import tiny_config

from qra_eval.costs.cards import check_engine, list_engine_bytes
from qra_eval.evaluators.quantized_lora import QuantizedLoRAEvaluator
from qra_search.app.config import make_config
from qra_search.engines import ENGINES


def shape_only(folder: Path, **sections: Any) -> QuantizedLoRAEvaluator:
    brief = {
        "model": {"name": str(folder)},
        "task": {"name": "arithmetic"},
        "training": {"max_length": 64},
        "evaluation": {"steps": 1, "validation_rows": 1},
        "finetune": {"steps": 1, "test_rows": 1},
    }
    return QuantizedLoRAEvaluator(make_config({**brief, **sections}), weights=False)


@pytest.mark.parametrize("name", ENGINES)
def test_the_least_bytes_of_an_engine_are_those_of_a_space_planned_for_it(name: str, tmp_path: Path) -> None:
    tiny_config("llama", layers=2, hidden=256, vocabulary=512).save_pretrained(tmp_path)
    planned = shape_only(tmp_path, engine=name)
    assert list_engine_bytes(shape_only(tmp_path).quantized_model)[name] == planned.space.memory.minimum


def test_an_engine_that_takes_no_such_model_says_why(tmp_path: Path) -> None:
    tiny_config("gpt2").save_pretrained(tmp_path)
    found = list_engine_bytes(shape_only(tmp_path).quantized_model)
    assert "this model is gpt2" in str(found["llama.cpp"]) and isinstance(found["transformers"], int)


EXPERTS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.1.up_proj")


@pytest.mark.parametrize("granularity", ["module", "expert"])
def test_llama_cpp_has_the_experts_of_a_layer_in_one_tensor(granularity: str) -> None:
    config = tiny_config("qwen3_moe", norm_topk_prob=True)
    with pytest.raises(
        ValueError, match=f"granularity {granularity} chooses for each of them. Use --granularity fused"
    ):
        check_engine("llama.cpp", config, linears=EXPERTS, granularity=granularity)
    check_engine("llama.cpp", config, linears=EXPERTS, granularity="fused")
    check_engine("llama.cpp", config, linears=EXPERTS[:1], granularity=granularity)


def test_what_llama_cpp_would_compute_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_topk_prob"):
        check_engine("llama.cpp", tiny_config("qwen3_moe", norm_topk_prob=False), granularity="fused")
    check_engine("transformers", tiny_config("qwen3_moe", norm_topk_prob=False))
