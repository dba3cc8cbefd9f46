"""A mixture gives the weighted sum of its experts, whose linears are the quantized and adapted ones."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qra_eval.models.experts import Experts
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
    for i, wrapper in enumerate(adapters.install(made, names).values()):
        if base == "frozen":
            wrapper.set_base(weight=wrapper.linear.weight.detach())
        elif base == "packed":
            wrapper.set_base(module=make_backend("reference").quantize(wrapper.linear, 3))
        rank = ranks[i % len(ranks)]
        if rank:
            wrapper.set_adapter(random(rank, wrapper.in_features), random(wrapper.out_features, rank), 0.3)
    chosen = torch.rand(TOKENS, EXPERTS - unused, generator=generator).argsort(1)[:, :CHOSEN]
    return made, {"hidden": random(TOKENS, HIDDEN).to(dtype), "chosen": chosen, "weights": random(TOKENS, CHOSEN)}


def gradients(made: Experts, given: dict) -> dict[str, Tensor]:
    """The output, and the gradients of a random scalar of it by inputs and factors; zeros where none came."""
    made.zero_grad()
    made.train()
    hidden, weights = (given[k].clone().requires_grad_() for k in ("hidden", "weights"))
    out = made(hidden, given["chosen"], weights)
    scale = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    (out * scale).sum().backward()
    found = {"out": out.detach(), "hidden": hidden.grad, "weights": weights.grad}
    for name, parameter in made.named_parameters():
        if parameter.requires_grad:
            found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    return found


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        worst = (found[name] - tensor).abs().max()
        assert worst <= tolerance * tensor.abs().max(), f"{name} is off by {worst}"


def by_hand(made: Experts, given: dict) -> Tensor:
    """The output of each token, choice by choice, from the weights of the linears written out."""

    def linear(x: Tensor, wrapper: adapters.AdaptedLinear) -> Tensor:
        base = wrapper.linear.weight if wrapper.frozen is None else wrapper.frozen
        weight = base if wrapper.base is None else wrapper.base.dequantize(x.dtype)
        if wrapper.rank:
            weight = weight + wrapper.scaling * wrapper.lora_B @ wrapper.lora_A
        return weight @ x

    rows = []
    for x, chosen, weights in zip(given["hidden"], given["chosen"], given["weights"], strict=True):
        out = torch.zeros_like(x)
        for at, weight in zip(chosen.tolist(), weights, strict=True):
            if at < EXPERTS:
                expert = made[at]
                out = out + weight * linear(
                    nn.functional.silu(linear(x, expert.gate_proj)) * linear(x, expert.up_proj), expert.down_proj
                )
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("ranks", [RANKS, (0,), (4,)], ids=["mixed", "none", "one"])
@pytest.mark.parametrize("base", ["plain", "frozen", "packed"])
def test_the_output_is_the_weighted_sum_of_each_tokens_experts(base, ranks):
    made, given = layer(base, ranks=ranks)
    assert_alike({"out": gradients(made, given)["out"]}, {"out": by_hand(made, given).detach()})


def test_experts_that_get_no_token_are_not_touched():
    made, given = layer("packed", unused=2)

    def fail(dtype=None):
        raise AssertionError("dequantized in vain")

    for expert in list(made)[EXPERTS - 2 :]:
        for linear in (expert.gate_proj, expert.up_proj, expert.down_proj):
            linear.base.dequantize = fail
    found = gradients(made, given)
    assert found["out"].abs().sum() > 0 and not found["5.down_proj.lora_A"].any()


def test_a_choice_beyond_the_last_expert_is_none():
    made, given = layer()
    given["chosen"] = given["chosen"].masked_fill(torch.arange(TOKENS)[:, None] % 3 == 0, EXPERTS)
    found = gradients(made, given)
    assert_alike({"out": found["out"]}, {"out": by_hand(made, given).detach()})
    assert not found["out"][::3].any() and not found["hidden"][::3].any()


def test_gradients_are_the_same_when_the_pass_is_made_again_for_them():
    made, given = layer("packed")
    expected = gradients(made, given)
    made.zero_grad()
    hidden, weights = (given[k].clone().requires_grad_() for k in ("hidden", "weights"))
    out = checkpoint(made, hidden, given["chosen"], weights, use_reentrant=False)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert torch.equal(hidden.grad, expected["hidden"]) and torch.equal(weights.grad, expected["weights"])
    factors = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert factors and all(torch.equal(grad, expected[name]) for name, grad in factors.items())


@pytest.mark.parametrize(
    "hook",
    [
        lambda linear, seen: linear.register_forward_pre_hook(lambda m, args: seen.append(args[0])),
        lambda linear, seen: linear.register_forward_hook(lambda m, args, out: seen.append(out)),
        lambda linear, seen: linear.register_full_backward_hook(lambda m, into, out: seen.append(out[0])),
    ],
)
def test_a_hook_on_a_linear_sees_its_tokens(hook):
    made, given = layer("frozen")
    seen: list[Tensor] = []
    handle = hook(made[1].up_proj, seen)
    gradients(made, given)
    assert [len(t) for t in seen] == [int((given["chosen"] == 1).sum())]
    handle.remove()
