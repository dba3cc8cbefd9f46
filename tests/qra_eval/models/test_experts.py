"""A mixture gives the weighted sum of its experts, whose linears are the quantized and adapted ones."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from torch import Tensor, nn

from qra_eval.models.linears import Experts
from qra_eval.quantized import adapters

EXPERTS, HIDDEN, INNER, TOKENS, CHOSEN = 6, 32, 64, 20, 2
RANKS = (0, 4, 8, 3)


def layer(base="plain", *, ranks=RANKS, dtype=torch.float32, unused=0) -> tuple[Experts, dict]:
    """Random experts whose linears are wrapped, and the inputs of a pass in which the last `unused` are not chosen."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    stacked = nn.Module()
    stacked.gate_up_proj = nn.Parameter(random(EXPERTS, 2 * INNER, HIDDEN).to(dtype) / HIDDEN**0.5)
    stacked.down_proj = nn.Parameter(random(EXPERTS, HIDDEN, INNER).to(dtype) / INNER**0.5)
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
    chosen = torch.rand(TOKENS, EXPERTS - unused, generator=generator).argsort(1)[:, :CHOSEN]
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
            if at < EXPERTS:
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
    given["chosen"] = given["chosen"].masked_fill(torch.arange(TOKENS)[:, None] % 3 == 0, EXPERTS)
    found = gradients(made, given)
    assert_alike(found["out"], by_hand(made, given).detach())
    assert not found["out"][::3].any() and not found["hidden"][::3].any()
