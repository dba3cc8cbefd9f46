"""Experts computed in batches give what they give when they are called one by one, and keep less for it."""

from __future__ import annotations

import pytest
import torch
from pretended_gpu import pretended_gpu
from qra_backends import make_backend
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qra_eval.models import expert_products
from qra_eval.models.expert_products import GroupedLinears
from qra_eval.models.experts import Expert, Experts
from qra_eval.quantized import adapters

EXPERTS, HIDDEN, INNER, TOKENS, CHOSEN = 6, 32, 64, 20, 2
RANKS = (0, 4, 8, 3)


class Foreign(nn.Module):
    """A quantized module as libraries have them: it can only be called."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.kept = weight.clone()
        self.bias = None
        self.out_features, self.in_features = weight.shape

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kept.t()


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
        kind = ("plain", "frozen", "packed", "nf4")[i % 4] if base == "mixed" else base
        if kind == "frozen":
            wrapper.set_base(weight=wrapper.linear.weight.detach())
        elif kind == "packed":
            wrapper.set_base(module=make_backend("reference").quantize(wrapper.linear, 3))
        elif kind in ("nf4", "hqq"):
            wrapper.set_base(
                module=make_backend({"nf4": "bitsandbytes-nf4"}.get(kind, kind)).quantize(wrapper.linear, 4)
            )
        elif kind == "foreign":
            wrapper.set_base(module=Foreign(wrapper.linear.weight.detach()))
        rank = ranks[i % len(ranks)]
        if rank:
            wrapper.set_adapter(random(rank, wrapper.in_features), random(wrapper.out_features, rank), 0.3)
    chosen = torch.rand(TOKENS, EXPERTS - unused, generator=generator).argsort(1)[:, :CHOSEN]
    return made, {"hidden": random(TOKENS, HIDDEN).to(dtype), "chosen": chosen, "weights": random(TOKENS, CHOSEN)}


def gradients(made: Experts, given: dict, batched: bool = True) -> dict[str, Tensor]:
    """The output, and the gradients of a random scalar of it by inputs and factors; zeros where none came."""
    made.zero_grad()
    made.train()
    hidden, weights = (given[k].clone().requires_grad_() for k in ("hidden", "weights"))
    made.batched = batched
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


@pytest.fixture
def calls(monkeypatch):
    """How often an expert was called."""
    made: list[Expert] = []
    forward = Expert.forward
    monkeypatch.setattr(Expert, "forward", lambda self, x: made.append(self) or forward(self, x))
    return made


@pytest.mark.parametrize("ranks", [RANKS, (0,), (4,)], ids=["mixed", "none", "one"])
@pytest.mark.parametrize("base", ["plain", "frozen", "packed", "nf4", "hqq", "mixed"])
def test_experts_together_give_outputs_and_gradients_of_the_loop(base, ranks, calls):
    made, given = layer(base, ranks=ranks)
    batched = gradients(made, given)
    assert not calls
    assert_alike(batched, gradients(made, given, batched=False))
    assert len(calls) == EXPERTS


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("base", ["plain", "packed", "mixed"])
def test_stacked_weights_give_outputs_and_gradients_of_the_loop(base, grouped, monkeypatch):
    """As on a GPU, where several experts' weights are made together; with grouped products, and without."""
    if grouped and not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this torch has no grouped products")
    made, given = layer(base, unused=1)
    expected = gradients(made, given, batched=False)
    monkeypatch.setattr(GroupedLinears, "_at_once", lambda self, rows: 3)
    if not grouped:
        monkeypatch.setattr(expert_products, "has_grouped_products", lambda *_: False)
    assert_alike(gradients(made, given), expected)


@pytest.mark.parametrize(
    ("capability", "grouped"), [((8, 0), False), ((8, 9), False), ((9, 0), True), ((12, 0), False)]
)
def test_grouped_products_are_for_cards_whose_kernel_there_is(capability, grouped, monkeypatch):
    if not hasattr(torch.nn.functional, "grouped_mm"):
        pytest.skip("this torch has no grouped products")
    with pretended_gpu():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        rows = torch.zeros(4, 16, dtype=torch.bfloat16, device="cuda")
        assert expert_products.has_grouped_products(rows, 16, 8) is grouped


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
    assert_alike(found, gradients(made, given, batched=False))
    assert not found["out"][::3].any() and not found["hidden"][::3].any()


@pytest.mark.parametrize("base", ["plain", "packed"])
def test_half_precision_is_near_the_loop(base):
    made, given = layer(base, dtype=torch.bfloat16, unused=1)
    assert_alike(gradients(made, given), gradients(made, given, batched=False), tolerance=4e-2)


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
    hooked = gradients(made, given)
    assert [len(t) for t in seen] == [int((given["chosen"] == 1).sum())]
    handle.remove()
    assert_alike(gradients(made, given), hooked)
    assert len(seen) == 1


def test_dropout_and_bases_that_are_trained_or_can_only_be_called_take_the_loop(calls):
    made, given = layer("foreign")
    gradients(made, given)
    assert len(calls) == EXPERTS
    calls.clear()
    made, given = layer("plain")
    made[0].up_proj.dropout = 0.5
    gradients(made, given)
    assert len(calls) == EXPERTS
    made[0].up_proj.dropout = 0.0
    made[2].down_proj.linear.weight.requires_grad_()
    assert gradients(made, given)["2.down_proj.linear.weight"].abs().sum() > 0
    assert len(calls) == 2 * EXPERTS


def test_nothing_of_the_size_of_a_weight_is_kept_for_the_backward_pass():
    made, given = layer("packed")
    assert saved(made, given) == {
        (TOKENS, HIDDEN), (TOKENS, CHOSEN), (TOKENS * CHOSEN,), (TOKENS * CHOSEN, INNER)
    }  # fmt: skip


def saved(made: Experts, given: dict) -> set[tuple[int, ...]]:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        made(given["hidden"].requires_grad_(), given["chosen"], given["weights"])
    return {tuple(t.shape) for t in kept}


@pytest.mark.parametrize("base", ["plain", "packed"])
def test_without_values_a_pass_saves_and_gives_tensors_of_the_same_shapes(base):
    made, given = layer(base)
    expected = saved(made, given)
    found = saved(made.to("meta"), {k: t.detach().to("meta") for k, t in given.items()})
    assert found == expected
    given = {k: t.detach().to("meta") for k, t in given.items()}
    assert {k: t.shape for k, t in gradients_without_values(made, given).items()} == {
        "hidden": (TOKENS, HIDDEN), "0.up_proj.lora_A": (4, HIDDEN)
    }  # fmt: skip


def gradients_without_values(made: Experts, given: dict) -> dict[str, Tensor]:
    hidden = given["hidden"].requires_grad_()
    made(hidden, given["chosen"], given["weights"]).sum().backward()
    return {"hidden": hidden.grad, "0.up_proj.lora_A": made[0].up_proj.lora_A.grad}
