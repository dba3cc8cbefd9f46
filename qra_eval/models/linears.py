"""Finds the linears of a model's decoder layers, and groups those that share one choice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from qra_search.engines import FUSED_KINDS


class Expert(nn.Module):
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
        # Slots of `chosen`, read row by row, by expert; those that choose none (a number beyond the last) are left out.
        counts = torch.bincount(chosen.reshape(-1), minlength=len(self))[: len(self)].tolist()
        slots = chosen.reshape(-1).argsort(stable=True)[: sum(counts)]
        for expert, own in zip(self, slots.split(counts), strict=True):
            if len(own):
                token = own // chosen.shape[1]
                part = expert(hidden[token]) * weights.reshape(-1, 1)[own]
                out = out.index_add(0, token, part.to(out.dtype))
        return out


def keep_expert_names(model: Any) -> None:
    """Keep peft 0.21, which goes by the model type alone, from renaming an adapter's experts to transformers' stacked
    ones, which `normalize_linears` took apart: the config has another type from now on."""
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
    nn.Module.__init__(linear)  # its own draws initial values: seconds for the linears of 6,000 experts
    linear.out_features, linear.in_features = weight.shape
    linear.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
    linear.register_parameter("bias", None if bias is None else nn.Parameter(bias.data, requires_grad=False))
    return linear


Granularity = Literal["module", "expert", "layer", "fused"]

EXPERT_PATTERN = re.compile(r"(.*\bexperts\.\d+)\..*")
"""Name of what lies in an expert of a mixture; the first group is the expert's."""

ROUTER_KINDS = frozenset({"gate", "router", "shared_expert_gate"})
"""Kinds that choose experts: a few rows whose error sends whole tokens astray, so they are left alone."""


@dataclass(frozen=True)
class FoundLinear:
    """A linear of a model: its path, decoder layer, and kind (the last part of its path)."""

    name: str
    layer: int
    kind: str
    module: nn.Linear


def find_linears(model: nn.Module) -> list[FoundLinear]:
    """The linears of the decoder layers, in the model's order; the head, embeddings and routers are left out."""
    path = find_decoder_layers(model)
    found = []
    for name, module in model.named_modules():
        kind = name.rpartition(".")[2]
        if isinstance(module, nn.Linear) and name.startswith(f"{path}.") and kind not in ROUTER_KINDS:
            found.append(FoundLinear(name, int(name[len(path) + 1 :].partition(".")[0]), kind, module))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linears in its decoder layers to quantize: choose another model"
        )
    return found


def group_linears(
    found: Sequence[FoundLinear], granularity: Granularity
) -> list[tuple[str, list[FoundLinear]]]:
    """Groups of linears that share one choice, as (name, members), in the order of their first member.

    `module`: every linear alone. `expert`: all linears of an expert together, the others alone. `layer`: all linears
    of a decoder layer. `fused`: q, k and v of one attention together, gate and up of one feed-forward together, the
    others alone; the experts of a layer share theirs.
    """
    groups: dict[str, list[FoundLinear]] = {}
    for linear in found:
        groups.setdefault(_make_group_name(linear, granularity), []).append(linear)
    return list(groups.items())


def resolve_granularity(found: Sequence[FoundLinear], wanted: Granularity | Literal["auto"]) -> Granularity:
    """What a config's granularity means for a model: `auto` is `expert` if there are experts, `module` otherwise."""
    experts = any(EXPERT_PATTERN.fullmatch(linear.name) for linear in found)
    if wanted == "auto":
        return "expert" if experts else "module"
    if wanted == "expert" and not experts:
        raise ValueError(
            "granularity 'expert' needs a mixture of experts, which this model is not: use 'module'"
        )
    return wanted


def find_group_kind(name: str, granularity: Granularity) -> str:
    """What a group has in common with its like in other layers: `layer`, `expert`, or the last part of its name."""
    if granularity == "layer":
        return "layer"
    expert = granularity == "expert" and EXPERT_PATTERN.fullmatch(f"{name}.")
    return "expert" if expert else name.rpartition(".")[2]


def normalize_linears(model: nn.Module) -> nn.Module:
    """Replace, in place, what computes as linears but is not: GPT-2's Conv1D, and experts stacked in one tensor.

    The outputs stay the same to rounding. The experts that transformers 5 stacks become one module each, with
    `gate_proj`, `up_proj` and `down_proj`; only the plain gated form is (no bias, not transposed, not interleaved),
    and any other stays as it is and is not searched.
    """
    for name, module in list(model.named_modules()):
        if is_stacked(module):
            model.set_submodule(name, Experts(module).train(module.training))
        elif is_conv1d(module):
            linear = make_linear(module.weight.data.t().contiguous(), module.bias)
            model.set_submodule(name, linear.train(module.training))
    return model


def find_decoder_layers(model: nn.Module) -> str:
    """Path of the outermost ModuleList with the most weights in linears."""
    best, most = None, 0
    outer: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{path}.") for path in outer):
            continue
        outer.append(name)
        linears: list[Any] = [m for m in module.modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
        weights = sum(m.weight.numel() for m in linears)
        if weights > most:
            best, most = name, weights
    if best is None:
        raise ValueError(
            f"{type(model).__name__} has no list of decoder layers: give a causal language model, which has one"
        )
    return best


def _make_group_name(linear: FoundLinear, granularity: Granularity) -> str:
    if granularity == "module":
        return linear.name
    if granularity == "expert":
        expert = EXPERT_PATTERN.fullmatch(linear.name)
        return expert[1] if expert else linear.name
    if granularity == "layer":
        prefix = re.match(rf"(.*?\.{linear.layer})\.", linear.name)
        return prefix[1] if prefix else linear.name
    parent = re.sub(r"(experts)\.\d+(?=\.|$)", r"\1", linear.name.rpartition(".")[0])
    fused = find_fused_kind(linear.kind)
    return f"{parent}.{fused}" if parent else fused


def find_fused_kind(kind: str) -> str:
    """`qkv` or `gate_up` if a linear of this kind is a part of one; its own kind otherwise."""
    return next((name for name, kinds in FUSED_KINDS if kinds.fullmatch(kind)), kind)


def is_conv1d(module: Any) -> bool:
    """Whether this is transformers' Conv1D, a linear with a transposed weight."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
