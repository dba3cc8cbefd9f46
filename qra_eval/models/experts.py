"""Mixtures of experts, each expert a module of its own whose linears can be searched, computed together.

Measured on one thread of a CPU, forward and backward, 128 experts of 512 x 192 with adapters, each token in 8 of them:
autograd over transformers' grouped products (its `integrations.moe`) took 0.7 to 1.9 times as long as the expert by
expert products that stood here before, and kept all dense weights and two to five times the activations for the
backward pass. `GatedExperts` keeps neither; with torch's grouped products for the adapters it takes 0.9 to 1.1 times as
long with 512 tokens, and 1.1 to 1.5 times with 2,048.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from qra_eval.models.expert_products import GroupedLinears, hooked, parts_of, valueless

KINDS = ("gate_proj", "up_proj", "down_proj")


class Expert(nn.Module):
    """One gated feed-forward network of a mixture.

    Attributes:
        tokens: int (M,), which of the layer's tokens it was last called on, if it was called.
    """

    tokens: Tensor | None = None

    def __init__(self, gate_up: Tensor, down: Tensor, activation: Any):
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate_proj, self.up_proj = linear_of(gate.clone()), linear_of(up.clone())
        self.down_proj = linear_of(down.clone())
        self.act_fn = activation

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class Experts(nn.ModuleList):
    """The experts of a layer, one module each; called as transformers' stacked ones are.

    Attributes:
        batched: whether experts may be computed in batches, without calling them. Outputs and gradients are those of
            `one_by_one` to rounding, which is taken anyway where something must be called: linears with hooks, biases,
            trainable bases, or dropout (whose random numbers follow from the order of calls).
    """

    batched = True

    def __init__(self, stacked: Any):
        pairs = zip(stacked.gate_up_proj.data, stacked.down_proj.data, strict=True)
        super().__init__(Expert(gate_up, down, stacked.act_fn) for gate_up, down in pairs)

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts: hidden (N, H), chosen int (N, K), weights (N, K)."""
        if not self.batched:
            return self.one_by_one(hidden, chosen, weights)
        slots, counts = sorted_slots(chosen, len(self))
        linears = self._grouped(counts)
        if linears is None or not len(slots):
            return self.one_by_one(hidden, chosen, weights)
        factors = [factor for kind in linears for factor in kind.factors]
        return GatedExperts.apply(hidden, weights, slots, linears, self[0].act_fn, *factors)

    def _grouped(self, counts: list[int]) -> list[GroupedLinears] | None:
        """Gate, up and down of the experts that have rows; None if one of them has to be called."""
        some = [(expert, count) for expert, count in zip(self, counts, strict=True) if count]
        if any(type(expert) is not Expert or hooked(expert) for expert, _ in some):
            return None
        found = []
        for kind in KINDS:
            parts = [parts_of(getattr(expert, kind)) for expert, _ in some]
            if any(part is None for part in parts):
                return None
            found.append(GroupedLinears(parts, [count for _, count in some]))  # type: ignore[arg-type]
        return found

    def one_by_one(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """What `forward` gives, by calling each chosen expert on its tokens."""
        out = torch.zeros_like(hidden)
        slots, counts = sorted_slots(chosen, len(self))
        for expert, own in zip(self, slots.split(counts), strict=True):
            if len(own):
                token = own // chosen.shape[1]
                expert.tokens = token
                part = expert(hidden[token]) * weights.reshape(-1, 1)[own]
                out = out.index_add(0, token, part.to(out.dtype))
        return out


def sorted_slots(chosen: Tensor, experts: int) -> tuple[Tensor, list[int]]:
    """The slots of `chosen` (N, K), read row by row, sorted by expert, (M,); and how many each expert has.

    Those that choose no expert (a number from `experts` on) are left out. Without values, where nothing is known of the
    choice, every slot is dealt out, evenly.
    """
    flat = chosen.reshape(-1)
    if valueless(flat):
        whole, rest = divmod(len(flat), experts)
        return torch.empty_like(flat), [whole + (i < rest) for i in range(experts)]
    counts = torch.bincount(flat, minlength=experts)[:experts].tolist()
    return flat.argsort(stable=True)[: sum(counts)], counts


class GatedExperts(torch.autograd.Function):
    """sum over k of weight_k down(act(gate x) * up x), all experts together.

    Kept for the backward pass are the outputs of gate and up, and what was given; dense weights are made anew. The
    weight is multiplied in before `down`, which has no bias, so that its gradient needs no output of `down`. Products
    without values give shapes alone: with them an estimate of a model of 6,000 experts would take a minute.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weights: Tensor, slots: Tensor, linears: list[GroupedLinears], act: Any,
        *factors: Tensor,
    ) -> Tensor:  # fmt: skip
        """hidden (N, H), weights (N, K), slots (M,) of these sorted by expert; to (N, H)."""
        x = hidden[slots // weights.shape[1]]
        gate, up = linears[0].product(x), linears[1].product(x)
        z = _gated(act, gate, up, weights.reshape(-1, 1)[slots])
        ctx.save_for_backward(hidden, weights, slots, gate, up)
        ctx.linears, ctx.act = linears, act
        return _over_choices(linears[2].product(z), slots, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weights, slots, gate, up = ctx.saved_tensors
        token = slots // weights.shape[1]
        x, share = hidden[token], weights.reshape(-1, 1)[slots]
        with torch.enable_grad():
            given = [t.detach().requires_grad_() for t in (gate, up, share)]
            z = _gated(ctx.act, *given)
        by_z, of_down = ctx.linears[2].pull(grad[token], z.detach())
        by_gate, by_up, by_share = torch.autograd.grad(z, given, by_z)
        by_x, of_gate = ctx.linears[0].pull(by_gate, x)
        more, of_up = ctx.linears[1].pull(by_up, x)
        by_weight = torch.zeros_like(weights.reshape(-1, 1)).index_copy_(0, slots, by_share).view_as(weights)
        by_hidden = _over_choices(by_x.add_(more), slots, weights)
        return by_hidden, by_weight, None, None, None, *of_gate, *of_up, *of_down


def _gated(act: Any, gate: Tensor, up: Tensor, share: Tensor) -> Tensor:
    return (act(gate) * up * share).to(up.dtype)


def _over_choices(rows: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """Sum over k of rows (M, H) at their slots (M,) to (N, H): added in one order on every device, unlike by
    `index_add`."""
    by_slot = rows.new_zeros(weights.numel(), rows.shape[1]).index_copy_(0, slots, rows)
    return by_slot.view(*weights.shape, -1).sum(1)


@contextmanager
def one_by_one(model: nn.Module) -> Iterator[None]:
    """Every expert of a model is called by itself, for as long as the context lasts: to compare to the bit."""
    found = [module for module in model.modules() if isinstance(module, Experts) and module.batched]
    try:
        for module in found:
            module.batched = False
        yield
    finally:
        for module in found:
            module.batched = True


def keep_names(model: Any) -> bool:
    """Keep peft from renaming an adapter's experts to transformers' stacked ones, which `normalise` took apart.

    peft 0.21 goes by the model type alone: it turns `gate_proj` and `up_proj` into `gate_up_proj` for Qwen's mixtures,
    whether or not the model at hand has such a parameter, and the adapter is then lost.

    Returns:
        Whether the model has such experts, and so another type from now on.
    """
    unstacked = any(isinstance(module, Experts) for module in model.modules())
    if unstacked:
        model.config.model_type = f"{type(model.config).model_type}_unstacked"
    return unstacked


@contextmanager
def named_as_it_is(model: Any) -> Iterator[None]:
    """As `keep_names`, for as long as the context lasts."""
    kept = keep_names(model)
    try:
        yield
    finally:
        if kept:
            del model.config.model_type


def is_stacked(module: Any) -> bool:
    """Whether this is a plain gated mixture stacked as (E, 2I, H) and (E, H, I), as transformers 5 has it."""
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (isinstance(gate_up, nn.Parameter) and isinstance(down, nn.Parameter) and gate_up.ndim == down.ndim == 3):
        return False
    plain = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    plain["has_post_expert_norm"] = False
    own_gate = getattr(type(module), "_apply_gate", None)
    return (
        all(getattr(module, name, value) is value for name, value in plain.items())
        and hasattr(module, "act_fn")
        and getattr(own_gate, "__name__", "") == "_default_apply_gate"
    )


def linear_of(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear with this weight (out, in) and bias, neither copied."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)  # its own draws initial values, which takes seconds for the linears of 6,000 experts
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.data, requires_grad=False))
    return linear
