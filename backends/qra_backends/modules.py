"""Layers that keep a weight only in quantized form, and the product that dequantizes it anew in each pass."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Dequantize = Callable[[torch.dtype], Tensor]


class DequantizedLinear(nn.Linear):
    """y = x Wᵀ + bias, with W computed anew by `dequantize` in forward and in backward.

    It is an `nn.Linear` for the sake of libraries that look for one: PEFT wraps it, and asks its `weight` for shape,
    dtype and device. That is a `TemporaryWeight`, a dequantized copy which refuses to be changed.

    A subclass registers what it stores as buffers of integer dtype (floats viewed as integers of their size):
    `module.to(dtype)` would round floats.

    Args:
        bias: frozen, or None.
        dtype: what the layer computes in.
    """

    def __init__(self, out_features: int, in_features: int, *, bias: nn.Parameter | None, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.out_features, self.in_features, self.dtype = out_features, in_features, dtype
        self.register_parameter("bias", bias)

    @abstractmethod
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) in `dtype` (default: the layer's own), a new tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return dequantized_linear(x, self.dequantize, self.bias)

    def __getattr__(self, name: str):
        if name == "weight":
            return TemporaryWeight(self.dequantize())
        return super().__getattr__(name)


class TemporaryWeight(Tensor):
    """A dequantized copy of a stored weight. Merging an adapter into it would be lost, so `data` is refused."""

    @staticmethod
    def __new__(cls, weight: Tensor) -> TemporaryWeight:
        return Tensor._make_subclass(cls, weight, False)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        raise RuntimeError(
            "the stored weight is quantized and takes no merge: keep the adapter apart, or merge into dequantize()"
        )


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
