"""A linear map that dequantizes its weight anew in forward and in backward, so that autograd keeps no copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Dequantize = Callable[[torch.dtype], Tensor]


def dequantized_linear(x: Tensor, dequantize: Dequantize, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for W = dequantize(x.dtype).

    Args:
        x: (..., in); gradients flow to it.
        dequantize: gives W (out, in) in the dtype asked for; called once forward and once backward.
        bias: (out,), cast to x's dtype.

    Returns:
        (..., out) in x's dtype.
    """
    if bias is not None:
        bias = bias.to(x.dtype)
    return _DequantizedLinear.apply(x, bias, dequantize)


class _DequantizedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, dequantize: Dequantize) -> Tensor:
        ctx.dequantize = dequantize
        return F.linear(x, dequantize(x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_output @ ctx.dequantize(grad_output.dtype)
        if ctx.needs_input_grad[1]:
            grad_bias = grad_output.flatten(0, -2).sum(0)
        return grad_x, grad_bias, None
