"""The linears of every architecture are found without naming its modules, and grouped as asked."""

from __future__ import annotations

import functools
from collections import Counter
from typing import get_args

import pytest
import torch
from qra_backends import make_backend
from tiny_families import FAMILIES, LAYERS, tiny_config_model
from torch import Tensor, nn

from qra_eval.models.linears import (
    Experts,
    Granularity,
    find_group_kind,
    find_linears,
    group_linears,
    resolve_granularity,
)
from qra_eval.quantized import adapters

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
    assert changed, "normalize_linears did nothing"
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


STACKED, HIDDEN, INNER, TOKENS, CHOSEN = 6, 32, 64, 20, 2
RANKS = (0, 4, 8, 3)


def layer(base="plain", *, ranks=RANKS, dtype=torch.float32, unused=0) -> tuple[Experts, dict]:
    """Random experts whose linears are wrapped, and the inputs of a pass in which the last `unused` are not chosen."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stacked = nn.Module()
    stacked.gate_up_proj = nn.Parameter(random(STACKED, 2 * INNER, HIDDEN).to(dtype) / HIDDEN**0.5)
    stacked.down_proj = nn.Parameter(random(STACKED, HIDDEN, INNER).to(dtype) / INNER**0.5)
    stacked.act_fn = nn.SiLU()
    made = Experts(stacked).requires_grad_(False)
    names = [name for name, linear in made.named_modules() if isinstance(linear, nn.Linear)]
    for i, wrapper in enumerate(adapters.wrap_linears(made, names).values()):
        if base == "frozen":
            wrapper.set_base(weight=wrapper.linear.weight.detach())
        elif base == "packed":
            wrapper.set_base(module=make_backend("reference").quantize(wrapper.linear, 3))
        rank = ranks[i % len(ranks)]
        if rank:
            wrapper.set_adapter(random(rank, wrapper.in_features), random(wrapper.out_features, rank), 0.3)
    chosen = torch.rand(TOKENS, STACKED - unused, generator=generator).argsort(1)[:, :CHOSEN]
    return made, {
        "hidden": random(TOKENS, HIDDEN).to(dtype),
        "chosen": chosen,
        "weights": random(TOKENS, CHOSEN),
    }


def gradients(made: Experts, given: dict, run=None) -> dict[str, Tensor]:
    """The output, and the gradients of a random scalar of it by inputs and factors; zeros where none came."""
    made.zero_grad()
    made.train()
    hidden, weights = (given[k].clone().requires_grad_() for k in ("hidden", "weights"))
    out = (run or made)(hidden, given["chosen"], weights)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    factors = {name: p for name, p in made.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in factors.items()}
    return {"out": out.detach(), "hidden": hidden.grad, "weights": weights.grad, **found}


def assert_alike(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def by_hand(made: Experts, given: dict) -> Tensor:
    """The output of each token, choice by choice, from the weights of the linears written out."""

    def linear(x: Tensor, wrapper: adapters.AdaptedLinear) -> Tensor:
        base = wrapper.linear.weight if wrapper.frozen is None else wrapper.frozen
        weight = base if wrapper.base is None else wrapper.base.dequantize(x.dtype)
        if wrapper.lora_A is not None:
            weight = weight + wrapper.scaling * wrapper.lora_B @ wrapper.lora_A
        return weight @ x

    rows = []
    for x, chosen, weights in zip(given["hidden"], given["chosen"], given["weights"], strict=True):
        out = torch.zeros_like(x)
        for at, weight in zip(chosen.tolist(), weights, strict=True):
            if at < STACKED:
                expert = made[at]
                out = out + weight * linear(
                    nn.functional.silu(linear(x, expert.gate_proj)) * linear(x, expert.up_proj),
                    expert.down_proj,
                )
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("ranks", [RANKS, (0,), (4,)], ids=["mixed", "none", "one"])
@pytest.mark.parametrize("base", ["plain", "frozen", "packed"])
def test_the_output_is_the_weighted_sum_of_each_tokens_experts(base, ranks):
    made, given = layer(base, ranks=ranks)
    assert_alike(gradients(made, given)["out"], by_hand(made, given).detach())


def test_a_choice_beyond_the_last_expert_is_none():
    made, given = layer()
    given["chosen"] = given["chosen"].masked_fill(torch.arange(TOKENS)[:, None] % 3 == 0, STACKED)
    found = gradients(made, given)
    assert_alike(found["out"], by_hand(made, given).detach())
    assert not found["out"][::3].any() and not found["hidden"][::3].any()
