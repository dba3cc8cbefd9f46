"""LoRA under a plan: one wrapper a linear, whose base and rank are set in microseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from qra_backends import Backend, Scales, multiply_scaled
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class TrainedScales(nn.Module):
    """The scales of a quantized module while they are trained; the module itself is left as it is.

    Args:
        scales: as `Backend.get_scales` gave them.
        keep: hold dequantized weights from the forward to the backward pass.
    """

    def __init__(self, backend: Backend, scales: Scales, *, keep: bool):
        super().__init__()
        self.backend, self.keep = backend, keep
        self.first = scales
        self.scale_change = nn.Parameter(torch.zeros_like(scales.scale, dtype=torch.float32))
        offset = None if scales.offset is None else torch.zeros_like(scales.offset, dtype=torch.float32)
        self.offset_change = None if offset is None else nn.Parameter(offset)

    def forward(self, x: Tensor, module: nn.Module) -> Tensor:
        """What `module` makes of x (..., in), with its scales as they are now."""
        dtype = x.dtype  # to hold x itself until the backward pass would undo checkpointing

        def dequantize(scales: Scales) -> Tensor:
            return self.backend.dequantize(
                self.backend.replace_scales(module, self._cast_to_stored(scales))
            ).to(dtype)

        bias = module.bias
        return multiply_scaled(x, self._compute_scales(), dequantize, bias, keep=self.keep)  # type: ignore[arg-type]

    def has_one_scale_per_row(self) -> bool:
        """Whether a row has one scale and no more, so that it may be trained beside the weight: see `compute_ratio`."""
        return self.first.offset is None and self.first.scale.shape[1] == 1

    def compute_ratio(self) -> Tensor:
        """Float32 (out,): what the outputs of the first weight are multiplied by, if `has_one_scale_per_row`.

        Its gradient is that of `scale_change`.
        """
        found = self._row_scales * (1 + self.scale_change[:, 0])
        return self._round(found) / self._row_scales

    @cached_property
    def _row_scales(self) -> Tensor:
        """The first scales, float32 (out,); 1 in place of 0, whose outputs are zero whatever they are multiplied by."""
        first = self.first.scale[:, 0].float()
        return first.masked_fill(first == 0, 1.0)

    @torch.no_grad()
    def get_scales(self) -> Scales:
        """Current scales and offsets in their stored dtype."""
        return self._cast_to_stored(self._compute_scales())

    def _compute_scales(self) -> Scales:
        """Float32, rounded as they are stored; gradients pass the rounding."""
        scale, offset = self.first.scale.float(), self.first.offset
        if offset is not None and self.offset_change is not None:
            offset = self._round(offset.float() + scale * self.offset_change)
        return Scales(self._round(scale * (1 + self.scale_change)), offset, self.first.size)

    def _round(self, found: Tensor) -> Tensor:
        rounded = found.detach().to(self.first.scale.dtype).float()
        return found + (rounded - found.detach()) if found.requires_grad else rounded

    def _cast_to_stored(self, scales: Scales) -> Scales:
        dtype, offset = self.first.scale.dtype, scales.offset
        return Scales(scales.scale.to(dtype), None if offset is None else offset.to(dtype), scales.size)


class AdaptedLinear(nn.Module):
    """A frozen linear, a module or a plain weight, with a LoRA adapter: `base(x) + B A dropout(x) * scaling`.

    The factors are float32 masters that are rounded to the input's dtype before they are used, so what is trained is
    what a saved half-precision adapter computes, in the order of peft's `Linear`.
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.linear = linear
        self.base: nn.Module | None = None
        self.frozen: Tensor | None = None
        self.frozen_bias: Tensor | None = None
        self.trained: TrainedScales | None = None
        self.lora_A: nn.Parameter | None = None
        self.lora_B: nn.Parameter | None = None
        self.scaling = 0.0
        self.dropout = 0.0

    def set_base(self, *, module: nn.Module | None = None, weight: Tensor | None = None) -> None:
        """Take a module, or a plain weight (out, in), as the frozen base."""
        self.base, self.frozen = module, weight
        bias = self.linear.bias
        # Beside a weight on a card the model's own bias may still lie on the host.
        self.frozen_bias = (
            None if bias is None or weight is None else bias.detach().to(weight.device, weight.dtype)
        )

    def set_adapter(self, A: Tensor | None, B: Tensor | None, scaling: float, dropout: float = 0.0) -> None:
        """Take copies of the factors A (rank, in) and B (out, rank); None: no adapter."""
        self.lora_A = None if A is None else nn.Parameter(A.detach().clone())
        self.lora_B = None if B is None else nn.Parameter(B.detach().clone())
        self.scaling, self.dropout = scaling, dropout

    def forward(self, x: Tensor) -> Tensor:
        is_trained = self.training and torch.is_grad_enabled() and not self.dropout
        if is_trained and self.frozen is not None and self.lora_A is not None and self.lora_B is not None:
            change = None if self.trained is None else self.trained.scale_change
            factors = self.lora_A, self.lora_B
            return FusedAdapter.apply(
                x, self.frozen, self.frozen_bias, *factors, self.scaling, change, self.trained
            )
        ratio = None if self.trained is None or self.frozen is None else self.trained.compute_ratio()
        if self.trained is not None and self.base is not None:
            y = self.trained(x, self.base)
        else:
            y = self._multiply(x, ratio) if self.frozen is not None else self._multiply_by_base(x)
        if self.lora_A is None or self.lora_B is None:
            return y
        z = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return y + F.linear(F.linear(z, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scaling

    def _multiply_by_base(self, x: Tensor) -> Tensor:
        base = self.base or self.linear
        if type(base) is not nn.Linear or base.weight.dtype == x.dtype:
            return base(x)  # type: ignore[no-any-return]
        return F.linear(x, base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype))

    def _multiply(self, x: Tensor, ratio: Tensor | None = None) -> Tensor:
        """Multiply by the plain weight in the input's dtype: float32 passes need no second copy of all weights."""
        weight = self.frozen.to(x.dtype)  # type: ignore[union-attr]
        bias = None if self.frozen_bias is None else self.frozen_bias.to(x.dtype)
        if ratio is None:
            return F.linear(x, weight, bias)
        y = scale_outputs(F.linear(x, weight), make_scale_factor(ratio, x.dtype))
        return y if bias is None else y + bias


def make_scale_factor(ratio: Tensor, dtype: torch.dtype) -> Tensor:
    """What `scale_outputs` takes for outputs of this dtype to be multiplied by ratio float32 (out,).

    In 16 bits y + y (ratio - 1) is computed: one pass, where a product of two dtypes takes three. A scale changes by
    little, so rounding that change loses less than rounding the product does.
    """
    return ratio if dtype == torch.float32 else (ratio - 1).to(dtype)


def scale_outputs(y: Tensor, by: Tensor) -> Tensor:
    """y (..., out) times the ratio that `by` (out,) is the `make_scale_factor` of, in y's dtype."""
    return y * by if by.dtype == torch.float32 else torch.addcmul(y, y, by)


class FusedAdapter(torch.autograd.Function):
    """`x W' ratio + bias + scaling (x A') B'` with every product added in place to the one before.

    Composed of single operations, scaling and adding pass over the wide output and the wide gradient four times more,
    and what is done to the small factors and scales is a dozen operations and as many nodes of autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        scaling: float,
        scale_change: Tensor | None = None,
        trained: TrainedScales | None = None,
    ) -> Tensor:
        """x (..., in), weight (out, in), A (rank, in) and B (out, rank) in float32 to (..., out).

        If scales are `trained`, their `scale_change` float32 (out, 1) gets its gradient here.
        """
        flat = x.reshape(-1, x.shape[-1])
        A, B = A.to(x.dtype), B.to(x.dtype)
        low = (flat @ A.t()).mul_(scaling)
        if trained is None:
            plain, by, y = None, None, F.linear(flat, weight, bias)
        else:
            plain = F.linear(flat, weight)
            by = make_scale_factor(trained.compute_ratio(), flat.dtype)
            y = scale_outputs(plain, by)
            if bias is not None:
                y += bias
        ctx.save_for_backward(flat, weight, A, B, low, by, plain)
        ctx.scaling, ctx.shape = scaling, x.shape
        # No view, which a model could not add to in place (Falcon does).
        whole: Tensor = torch.ops.aten._unsafe_view(y.addmm_(low, B.t()), [*x.shape[:-1], len(weight)])
        return whole

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        flat, weight, A, B, low, by, plain = ctx.saved_tensors
        g = grads[0].reshape(-1, grads[0].shape[-1])
        low_grad = (g @ B).mul_(ctx.scaling)
        dx = None
        if ctx.needs_input_grad[0]:
            through = g if by is None else scale_outputs(g, by)
            dx = (through @ weight).addmm_(low_grad, A).view(ctx.shape)
        by_change = None if by is None else (g * plain).sum(0, dtype=torch.float32)[:, None]
        return dx, None, None, low_grad.t() @ flat, g.t() @ low, None, by_change, None


def wrap_linears(model: nn.Module, names: Sequence[str]) -> dict[str, AdaptedLinear]:
    """Wrap the named linears of a model in place; every parameter that was there is frozen."""
    model.requires_grad_(False)
    wrapped = {name: AdaptedLinear(cast(nn.Linear, model.get_submodule(name))) for name in names}
    for name, wrapper in wrapped.items():
        model.set_submodule(name, wrapper)
    return wrapped


def draw_factors(
    seed: int, linear: AdaptedLinear | nn.Linear, name: str, max_rank: int
) -> tuple[Tensor, Tensor]:
    """A (max_rank, in), Kaiming-uniform, and B (out, max_rank), zero, both float32.

    A lower rank takes the leading rows and columns. The numbers depend on the seed and the linear's name alone, so
    plans that differ elsewhere start alike.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    bound = linear.in_features**-0.5  # kaiming_uniform with a = sqrt(5), which is what peft uses
    A = torch.empty(max_rank, linear.in_features).uniform_(-bound, bound, generator=generator)
    return A, torch.zeros(linear.out_features, max_rank)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters by name that are trained at one rate, which is times the learning rate of the settings."""

    parameters: Mapping[str, nn.Parameter]
    rate: float = 1.0


def make_parameter_groups(
    wrapped: Mapping[str, AdaptedLinear], *, scales_rate: float = 1.0
) -> list[ParameterGroup]:
    """All that is trained: adapters, and what changes scales and offsets; empty groups are left out."""
    changes = {
        f"{name}.{part}": change
        for name, w in wrapped.items()
        if w.trained is not None
        for part, change in w.trained.named_parameters()
    }
    groups = [ParameterGroup(get_named_factors(wrapped)), ParameterGroup(changes, rate=scales_rate)]
    return [group for group in groups if group.parameters]


def get_named_factors(wrapped: Mapping[str, AdaptedLinear]) -> dict[str, nn.Parameter]:
    """The adapters' factors, in order, by peft's names (`<linear>.lora_A.weight`)."""
    return {
        f"{name}.{side}.weight": factor
        for name, w in wrapped.items()
        for side, factor in (("lora_A", w.lora_A), ("lora_B", w.lora_B))
        if factor is not None
    }


def cast_factors(wrapped: Mapping[str, AdaptedLinear], dtype: torch.dtype) -> dict[str, Tensor]:
    """The factors in `dtype`, by peft's names."""
    factors = get_named_factors(wrapped)
    return {name: factor.detach().to(dtype).contiguous() for name, factor in factors.items()}
