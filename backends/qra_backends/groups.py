"""Groups of a quantized weight whose numbers can be trained, and the product whose gradient reaches them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Groups(NamedTuple):
    """Weights are scale · code + offset, with one of each for `size` weights of a row; the last group may be shorter.

    Scale and offset are (out, groups), in the dtype that they are stored in. Without offsets all weights of a group are
    in proportion to its scale: codes less a whole zero point, or blocks that have scales of their own inside.
    """

    scale: Tensor
    offset: Tensor | None
    size: int


def grouped_linear(
    x: Tensor, groups: Groups, dequantize: Callable[[Groups], Tensor], bias: Tensor | None = None, *, keep: bool = False
) -> Tensor:
    """x Wᵀ + bias for W = dequantize(groups), with gradients by x, and by scale and offset if they ask for them.

    The gradient of the whole weight is made for the length of one product, and summed by group at once.

    Args:
        x: (..., in).
        groups: float32 (out, groups), rounded to what can be stored.
        dequantize: gives W (out, in), in x's dtype.
        bias: (out,), frozen; cast to x's dtype.
        keep: hold W until the backward pass; else it is made anew there.

    Returns:
        (..., out) in x's dtype.
    """
    if bias is not None:
        bias = bias.to(x.dtype)
    return _GroupedLinear.apply(x, groups.scale, groups.offset, groups.size, dequantize, bias, keep)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, offset: Tensor | None, size: int,
        dequantize: Callable[[Groups], Tensor], bias: Tensor | None, keep: bool,
    ) -> Tensor:  # fmt: skip
        weight = dequantize(Groups(scale, offset, size))
        ctx.save_for_backward(x, scale, offset, *((weight,) if keep else ()))
        ctx.size, ctx.dequantize = size, dequantize
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, offset, *kept = ctx.saved_tensors
        weight = kept[0] if kept else ctx.dequantize(Groups(scale, offset, ctx.size))
        grad = grads[0]
        dx = grad @ weight if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:3]):
            return dx, None, None, None, None, None, None
        whole = grad.flatten(0, -2).T @ x.flatten(0, -2)
        by_offset = None if offset is None else _summed(whole, ctx.size)
        # Codes are (weight - offset) / scale, so they need not be unpacked again.
        along = _summed(whole.mul_(weight), ctx.size)
        if offset is not None:
            along = along - offset * by_offset
        by_scale = torch.where(scale == 0, 0.0, along / torch.where(scale == 0, 1.0, scale))
        return dx, by_scale, by_offset, None, None, None, None


def _summed(whole: Tensor, size: int) -> Tensor:
    """Sums (out, groups) over the groups of each row of a matrix (out, in), float32."""
    lacking = -whole.shape[1] % size
    if lacking:
        whole = F.pad(whole, (0, lacking))
    return whole.unflatten(1, (-1, size)).sum(-1, dtype=torch.float32)
