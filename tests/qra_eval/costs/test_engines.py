"""The least bytes of each engine are those of a space planned for it; what it cannot take is refused."""

from __future__ import annotations

import pytest
from tiny_families import tiny_config

from qra_eval.costs.search import check_engine

EXPERTS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.1.up_proj")


@pytest.mark.parametrize("granularity", ["module", "expert"])
def test_llama_cpp_has_the_experts_of_a_layer_in_one_tensor(granularity: str) -> None:
    config = tiny_config("qwen3_moe", norm_topk_prob=True)
    with pytest.raises(
        ValueError, match=f"granularity {granularity} chooses for each of them. Use --granularity fused"
    ):
        check_engine("llama.cpp", config, EXPERTS, granularity)
    check_engine("llama.cpp", config, EXPERTS, granularity="fused")
    check_engine("llama.cpp", config, EXPERTS[:1], granularity=granularity)


def test_what_llama_cpp_would_compute_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="norm_topk_prob"):
        check_engine("llama.cpp", tiny_config("qwen3_moe", norm_topk_prob=False), granularity="fused")
    check_engine("transformers", tiny_config("qwen3_moe", norm_topk_prob=False))
