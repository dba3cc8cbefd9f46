"""The linears of every architecture are found without naming its modules, and grouped as asked."""

from __future__ import annotations

import functools
from collections import Counter
from typing import get_args

import pytest
import torch
from tiny_families import FAMILIES, LAYERS, tiny_config_model
from torch import nn

from qra_eval.models.linears import (
    Granularity,
    find_group_kind,
    find_linears,
    group_linears,
    resolve_granularity,
)

EXPERTS = 4
model_of = functools.cache(tiny_config_model)
ATTENTION_AND_FEED_FORWARD = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"), 4 + 3),
    **dict.fromkeys(("phi", "opt"), 4 + 2),
    **dict.fromkeys(("phi3", "gpt2", "gpt_neox"), 2 + 2),
    **dict.fromkeys(("mixtral", "qwen3_moe"), 4 + 3 * EXPERTS),
    "qwen2_moe": 4 + 3 * EXPERTS + 3,
}
IDS = torch.randint(0, 320, (2, 17), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_every_layer_is_found_but_routers_and_head(family):
    model = model_of(family)
    found = find_linears(model)
    assert Counter(linear.layer for linear in found) == dict.fromkeys(
        range(LAYERS), ATTENTION_AND_FEED_FORWARD[family]
    )
    matrices = {name.removesuffix(".weight") for name, p in model.named_parameters() if p.ndim > 1}
    rest = {name: model.get_submodule(name) for name in matrices - {linear.name for linear in found}}
    head = model.get_output_embeddings()
    assert all(isinstance(m, nn.Embedding) or m is head or name.endswith("gate") for name, m in rest.items())


@pytest.mark.parametrize("family", ["gpt2", "mixtral", "qwen2_moe", "qwen3_moe"])
def test_normalising_leaves_the_logits_as_they_were(family):
    before = tiny_config_model(family, normalised=False)
    after = model_of(family)
    changed = {type(m).__name__ for m in before.modules()} - {type(m).__name__ for m in after.modules()}
    assert changed, "normalise did nothing"
    torch.testing.assert_close(after(input_ids=IDS).logits, before(input_ids=IDS).logits)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("granularity", get_args(Granularity))
def test_groups_hold_every_linear_once_and_never_cross_a_layer(family, granularity):
    found = find_linears(model_of(family))
    groups = group_linears(found, granularity)
    assert sorted(member.name for _, members in groups for member in members) == sorted(f.name for f in found)
    assert len({name for name, _ in groups}) == len(groups)
    assert all(len({member.layer for member in members}) == 1 for _, members in groups)


def test_linears_that_are_fused_share_a_group_and_so_do_the_experts_of_a_layer():
    found = find_linears(model_of("llama"))
    assert [name for name, _ in group_linears(found, "module")] == [linear.name for linear in found]
    assert [name for name, _ in group_linears(found, "layer")] == ["model.layers.0", "model.layers.1"]
    fused = dict(group_linears(found, "fused"))
    kinds = {name: [member.kind for member in members] for name, members in fused.items() if ".0." in name}
    assert kinds == {
        "model.layers.0.self_attn.qkv": ["q_proj", "k_proj", "v_proj"],
        "model.layers.0.self_attn.o_proj": ["o_proj"],
        "model.layers.0.mlp.gate_up": ["gate_proj", "up_proj"],
        "model.layers.0.mlp.down_proj": ["down_proj"],
    }
    mixture = dict(group_linears(find_linears(model_of("qwen2_moe")), "fused"))
    sizes = {"experts.gate_up": 2 * EXPERTS, "experts.down_proj": EXPERTS, "shared_expert.gate_up": 2}
    assert {name: len(mixture[f"model.layers.1.mlp.{name}"]) for name in sizes} == sizes


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_an_expert_is_a_group_and_the_linears_around_it_are_groups_of_their_own(family):
    found = find_linears(model_of(family))
    assert resolve_granularity(found, "auto") == "expert"
    groups = dict(group_linears(found, "expert"))
    kinds = {name: find_group_kind(name, "expert") for name in groups}
    experts = [name for name, kind in kinds.items() if kind == "expert"]
    assert experts == [f"model.layers.{i}.mlp.experts.{e}" for i in range(LAYERS) for e in range(EXPERTS)]
    for name in experts:
        assert [member.kind for member in groups[name]] == ["gate_proj", "up_proj", "down_proj"]
    assert all(
        len(groups[name]) == 1 and name.endswith(kinds[name]) for name in groups if name not in experts
    )
