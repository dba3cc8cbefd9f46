"""Mixtures of experts, each expert a module of its own whose linears can be searched.

Each chosen expert is called on its tokens, as transformers' eager implementation does, so that the quantized base and
the adapter of every linear are what is used. Measured on one thread of a CPU, forward and backward, 128 experts of
512 x 192 in 4 bits with adapters, each token in 8 of them: 0.8 to 1.5 times as long as grouped products that dequantize
expert by expert.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Expert(nn.Module):
    """One gated feed-forward network of a mixture."""

    def __init__(self, gate_up: Tensor, down: Tensor, activation: Any):
        super().__init__()
        gate, up = gate_up.chunk(2)
        self.gate_proj, self.up_proj = make_linear(gate.clone()), make_linear(up.clone())
        self.down_proj = make_linear(down.clone())
        self.act_fn = activation

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(hidden)) * self.up_proj(hidden))


class Experts(nn.ModuleList):
    """The experts of a layer, one module each; called as transformers' stacked ones are."""

    def __init__(self, stacked: Any):
        pairs = zip(stacked.gate_up_proj.data, stacked.down_proj.data, strict=True)
        super().__init__(Expert(gate_up, down, stacked.act_fn) for gate_up, down in pairs)

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Weighted sum of the chosen experts: hidden (N, H), chosen int (N, K), weights (N, K)."""
        out = torch.zeros_like(hidden)
        slots, counts = sort_by_expert(chosen, len(self))
        for expert, own in zip(self, slots.split(counts), strict=True):
            if len(own):
                token = own // chosen.shape[1]
                part = expert(hidden[token]) * weights.reshape(-1, 1)[own]
                out = out.index_add(0, token, part.to(out.dtype))
        return out


def sort_by_expert(chosen: Tensor, experts: int) -> tuple[Tensor, list[int]]:
    """The slots of `chosen` (N, K), read row by row, sorted by expert, (M,); and how many each expert has.

    Those that choose no expert (a number from `experts` on) are left out.
    """
    flat = chosen.reshape(-1)
    counts = torch.bincount(flat, minlength=experts)[:experts].tolist()
    return flat.argsort(stable=True)[: sum(counts)], counts


def keep_expert_names(model: Any) -> None:
    """Keep peft from renaming an adapter's experts to transformers' stacked ones, which `normalise` took apart.

    peft 0.21 goes by the model type alone: it turns `gate_proj` and `up_proj` into `gate_up_proj` for Qwen's mixtures,
    whether or not the model at hand has such a parameter, and the adapter is then lost. So the config has another type
    from now on.
    """
    if any(isinstance(module, Experts) for module in model.modules()):
        model.config.model_type = f"{type(model.config).model_type}_unstacked"


def is_stacked(module: Any) -> bool:
    """Whether this is a plain gated mixture stacked as (E, 2I, H) and (E, H, I), as transformers 5 has it."""
    gate_up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not (
        isinstance(gate_up, nn.Parameter)
        and isinstance(down, nn.Parameter)
        and gate_up.ndim == down.ndim == 3
    ):
        return False
    plain = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
    plain["has_post_expert_norm"] = False
    own_gate = getattr(type(module), "_apply_gate", None)
    return (
        all(getattr(module, name, value) is value for name, value in plain.items())
        and hasattr(module, "act_fn")
        and getattr(own_gate, "__name__", "") == "_default_apply_gate"
    )


def make_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear with this weight (out, in) and bias, neither copied."""
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(
        linear
    )  # its own draws initial values, which takes seconds for the linears of 6,000 experts
    linear.out_features, linear.in_features = weight.shape
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.data, requires_grad=False))
    return linear
