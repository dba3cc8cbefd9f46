"""Which engines take a plan as it is follows from its backend, its levels, its ranks and what shares a choice."""

from __future__ import annotations

from typing import Any

import pytest

from qra_search import Group, Linear, Plan, SearchSpace
from qra_search.config import make_config
from qra_search.report.engine_support import engines_text, find_engines


def space(bits: tuple[int, ...] = (2, 3, 4, 8, 16), ranks: tuple[int, ...] = (8, 1024)) -> SearchSpace:
    linears = ("layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj", "layers.0.mlp.down_proj")
    groups = [Group(name=n, linears=[Linear(name=n, out_features=64, in_features=64)]) for n in linears]
    return SearchSpace(groups=groups, bits=bits, ranks=ranks)


@pytest.mark.parametrize(
    "backend, bits, ranks, wanted",
    [
        ("compressed-tensors", (4, 4, 8), (8, 8, 8), ("vllm",)),
        ({"name": "compressed-tensors", "group_size": 32}, (4, 4, 16), (8, 8, 8), ("vllm",)),
        ("compressed-tensors", (4, 8, 8), (8, 8, 8), ()),  # q and k run as one matrix
        ("compressed-tensors", (4, 4, 8), (8, 8, 1024), ()),
        ("bitsandbytes-nf4", (4, 16, 4), (8, 8, 8), ("transformers",)),
        ("compressed-tensors", (16, 16, 16), (8, 8, 8), ()),
        ("mixed-calibrated", (2, 3, 4), (8, 8, 8), ()),
        ({4: "compressed-tensors", 2: "hqq"}, (2, 2, 4), (8, 8, 8), ()),
    ],
)
def test_the_engines_of_a_plan(backend: Any, bits: Any, ranks: Any, wanted: Any) -> None:
    config = make_config({"quantization": {"backend": backend}})
    assert find_engines(config, space(), Plan(bits, ranks)) == list(wanted)
    text = engines_text(config, space(), Plan(bits, ranks))
    assert wanted[0] in text if wanted else "qra_eval.load" in text and "--engine" in text
    assert all(name in engines_text(config) for name in wanted)
