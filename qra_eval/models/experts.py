"""Mixtures of experts, each expert a module of its own whose linears can be searched, that compute in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from qra_eval.models.expert_products import (
    RANK_MULTIPLE,
    LinearParts,
    Rows,
    Sliced,
    Stacked,
    gives_weight,
    hooked,
    parts_of,
)

BATCH_BYTES = 64 << 20
"""Dense weights of one linear of a batch of experts, at most; one expert's are always held."""
BATCH_EXPERTS = 16
"""Experts of a batch, at most, where they are multiplied one after another: their rows then stay in caches."""
MOST_PADDING = 4.0
"""Padded rows for each real one, at most, where experts are stacked but torch has no grouped products for them."""
HALF_ROWS = 16
"""On a CPU an expert's rows in half precision are filled up to a multiple of it: oneDNN compiles a product anew for
each number of rows, which takes ten times as long as most of them, and multiplies 16 rows at once."""


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
        half_on_cpu = hidden.device.type == "cpu" and hidden.element_size() == 2
        slots, counts = sorted_slots(chosen, len(self), HALF_ROWS if half_on_cpu else 1)
        experts = [(expert, count) for expert, count in zip(self, counts, strict=True) if count]
        batches = make_batches(experts, hidden)  # type: ignore[arg-type]
        if batches is None:
            return self.one_by_one(hidden, chosen, weights)
        factors = [factor for batch in batches for factor in batch.factors]
        return GatedExperts.apply(hidden, weights, slots, batches, self[0].act_fn, *factors)

    def one_by_one(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """What `forward` gives, by calling each chosen expert on its tokens; needs values, so no meta tensors."""
        out = torch.zeros_like(hidden)
        for index in chosen.unique().tolist():
            if index < len(self):
                token, position = torch.where(chosen == index)
                self[index].tokens = token
                part = self[index](hidden[token]) * weights[token, position, None]
                out = out.index_add(0, token, part.to(out.dtype))
        return out


def sorted_slots(chosen: Tensor, experts: int, multiple: int = 1) -> tuple[Tensor, list[int]]:
    """The slots of `chosen` (N, K), read row by row, sorted by expert, (M,); and how many each expert has.

    Those that choose no expert (a number from `experts` on) are left out; the empty slot N K fills each expert's up to
    a multiple. Without values, where nothing is known of the choice, every slot is dealt out, evenly.
    """
    flat = chosen.reshape(-1)
    if valueless(flat):
        whole, rest = divmod(len(flat), experts)
        return torch.empty_like(flat), [whole + (i < rest) for i in range(experts)]
    sizes = torch.bincount(flat, minlength=experts)[:experts]
    counts = sizes.tolist()
    order = flat.argsort(stable=True)[: sum(counts)]
    if multiple == 1:
        return order, counts
    filled = (sizes + multiple - 1) // multiple * multiple
    moved = (filled - sizes).cumsum(0) - (filled - sizes)  # by the filling of the experts before
    places = torch.arange(len(order), device=flat.device) + moved.repeat_interleave(sizes)
    counts = filled.tolist()
    return flat.new_full((sum(counts),), len(flat)).index_copy_(0, places, order), counts


def valueless(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but a shape: on the meta device, or a fake one of an estimate."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


@dataclass(frozen=True)
class Batch:
    """Some experts of a layer, and which of the sorted rows are theirs."""

    rows: slice
    gate: Sliced | Stacked
    up: Sliced | Stacked
    down: Sliced | Stacked

    @property
    def factors(self) -> list[Tensor]:
        """Those of the adapters, in the order in which their gradients are given."""
        parts = [*self.gate.parts, *self.up.parts, *self.down.parts]
        return [factor for part in parts for factor in (part.A, part.B) if factor is not None]


def make_batches(experts: Sequence[tuple[Expert, int]], hidden: Tensor) -> list[Batch] | None:
    """Batches of experts with so many rows each; None if a linear has to be called."""
    kinds: tuple[list[LinearParts], ...] = ([], [], [])
    for expert, _ in experts:
        if not isinstance(expert, Expert) or hooked(expert):
            return None
        for kind, linear in zip(kinds, (expert.gate_proj, expert.up_proj, expert.down_proj), strict=True):
            parts = parts_of(linear)
            if parts is None:
                return None
            kind.append(parts)
    if not experts:
        return []
    out, inputs = kinds[0][0].shape
    size = max(1, BATCH_BYTES // (out * inputs * hidden.element_size()))
    aligned = out % RANK_MULTIPLE == inputs % RANK_MULTIPLE == 0
    stack = hidden.is_cuda and aligned and all(gives_weight(part.base) for kind in kinds for part in kind)
    size = size if stack else min(size, BATCH_EXPERTS)
    batches, start = [], 0
    for first in range(0, len(experts), size):
        counts = [count for _, count in experts[first : first + size]]
        rows = slice(start, start + sum(counts))
        members = [kind[first : first + size] for kind in kinds]
        places = Rows(counts, hidden) if stack else None
        if places is not None and (places.grouped or places.padding <= MOST_PADDING):
            batches.append(Batch(rows, *(Stacked(parts, places) for parts in members)))
        else:
            batches.append(Batch(rows, *(Sliced(parts, counts) for parts in members)))
        start = rows.stop
    return batches


class GatedExperts(torch.autograd.Function):
    """sum over k of weight_k down(act(gate x) * up x), the experts of a batch together.

    Kept for the backward pass are the outputs of gate and up, and what was given; dense weights are made anew. The
    weight is multiplied in before `down`, which has no bias, so that its gradient needs no output of `down`. Meta
    tensors are only saved and made: products without values would take a minute for a model of 6,000 experts.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weights: Tensor, slots: Tensor, batches: list[Batch], act: Any, *factors: Tensor
    ) -> Tensor:
        """hidden (N, H), weights (N, K), slots (M,) of these sorted by expert; to (N, H)."""
        token, share, rows_in = slots // weights.shape[1], _and_empty(weights.reshape(-1, 1)), _and_empty(hidden)
        inner = batches[0].gate.parts[0].shape[0] if batches else 0
        gate, up = hidden.new_empty(len(slots), inner), hidden.new_empty(len(slots), inner)
        by_slot = hidden.new_zeros(len(share), hidden.shape[1])
        for batch in () if valueless(hidden) else batches:
            rows = batch.rows
            x = rows_in[token[rows]]
            batch.gate.product(x, gate[rows])
            batch.up.product(x, up[rows])
            z = _gated(act, gate[rows], up[rows], share[slots[rows]])
            by_slot[slots[rows]] = batch.down.product(z, torch.empty_like(x))
        ctx.save_for_backward(hidden, weights, slots, gate, up)
        ctx.batches, ctx.act = batches, act
        return _over_choices(by_slot, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weights, slots, gate, up = ctx.saved_tensors
        token, share, rows_in = slots // weights.shape[1], _and_empty(weights.reshape(-1, 1)), _and_empty(hidden)
        rows_out, share_grad = _and_empty(grad), torch.zeros_like(share)
        by_slot = grad.new_zeros(len(share), grad.shape[1]) if ctx.needs_input_grad[0] else None
        factors: list[Tensor] = []
        if valueless(hidden):
            factors = [torch.empty_like(factor) for batch in ctx.batches for factor in batch.factors]
        for batch in () if valueless(hidden) else ctx.batches:
            rows = batch.rows
            x = rows_in[token[rows]]
            with torch.enable_grad():
                given = [t.detach().requires_grad_() for t in (gate[rows], up[rows], share[slots[rows]])]
                z = _gated(ctx.act, *given)
            z_grad = torch.empty_like(z)
            of_down = batch.down.pull(rows_out[token[rows]], z.detach(), z_grad)
            gate_grad, up_grad, share_grad[slots[rows]] = torch.autograd.grad(z, given, z_grad)
            x_grad = None if by_slot is None else torch.empty_like(x)
            factors += batch.gate.pull(gate_grad, x, x_grad)
            factors += batch.up.pull(up_grad, x, x_grad, add=True)
            factors += of_down
            if by_slot is not None and x_grad is not None:
                by_slot[slots[rows]] = x_grad
        hidden_grad = None if by_slot is None else _over_choices(by_slot, weights)
        return hidden_grad, share_grad[:-1].view_as(weights), None, None, None, *factors


def _gated(act: Any, gate: Tensor, up: Tensor, share: Tensor) -> Tensor:
    return (act(gate) * up * share).to(up.dtype)


def _and_empty(values: Tensor) -> Tensor:
    """Values (N, ...) and a row of zeros, which the empty slot reads."""
    return F.pad(values, (0, 0, 0, 1))


def _over_choices(by_slot: Tensor, weights: Tensor) -> Tensor:
    """Sum over k of rows (N K + 1, H) to (N, H): added in one order on every device, unlike by `index_add`."""
    return by_slot[:-1].view(*weights.shape, -1).sum(1)


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


@contextmanager
def named_as_it_is(model: Any) -> Iterator[None]:
    """Keeps peft from renaming an adapter's experts to transformers' stacked ones, which `normalise` took apart.

    peft 0.21 goes by the model type alone: it turns `gate_proj` and `up_proj` into `gate_up_proj` for Qwen's mixtures,
    whether or not the model at hand has such a parameter, and the adapter is then lost.
    """
    if not any(isinstance(module, Experts) for module in model.modules()):
        yield
        return
    model.config.model_type = f"{type(model.config).model_type}_unstacked"
    try:
        yield
    finally:
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
