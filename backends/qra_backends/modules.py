"""Layers that keep a weight only in quantized form; products that dequantize it anew, or train its scales."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

Dequantize = Callable[[torch.dtype], Tensor]
INTEGER_DTYPES = {2: torch.int16, 4: torch.int32}
"""Integer dtypes by the bytes of a number."""


class DequantizedLinear(nn.Linear):
    """y = x Wᵀ + bias, with W computed anew by `dequantize` in forward and in backward.

    It is an `nn.Linear` for the sake of libraries that look for one: PEFT wraps it, and asks its `weight` for shape,
    dtype and device a dozen times. That is a `TemporaryWeight`, which is dequantized where its values are used.

    Args:
        tensors: what it stores, by name. Each is a buffer; floats are viewed as integers of their size, as
            `module.to(dtype)` would round them.
        bias: frozen, or None.
        dtype: what the layer computes in.
        settings: of a backend's own layer, which become its attributes.

    Attributes:
        few_inputs: inputs of one product, at most, for which no weight is made if no gradients are recorded.
    """

    few_inputs = 0

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        *,
        out_features: int,
        in_features: int,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
        **settings: Any,
    ):
        nn.Module.__init__(self)
        self.out_features, self.in_features, self.dtype = out_features, in_features, dtype
        vars(self).update(settings)
        self.register_parameter("bias", bias)
        self._store(tensors)

    def _store(self, tensors: Mapping[str, Tensor]) -> None:
        self._dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        for name, tensor in tensors.items():
            whole = INTEGER_DTYPES[tensor.element_size()] if tensor.is_floating_point() else tensor.dtype
            self.register_buffer(name, tensor.view(whole))

    def tensors(self) -> dict[str, Tensor]:
        """What it stores, by name: views of the buffers."""
        return {name: self.get_buffer(name).view(dtype) for name, dtype in self._dtypes.items()}

    def replace_tensors(self, **tensors: Tensor) -> Self:
        """A layer that has some other tensors, and shares all else with this one."""
        twin = copy.copy(self)
        twin._buffers = {}
        twin._store({**self.tensors(), **tensors})
        return twin

    @abstractmethod
    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) in `dtype` (default: the layer's own), a new tensor."""

    def dequantize_rows(self, at: Tensor) -> Tensor:
        """The rows (n, in) of `dequantize()` with indices `at` (n,); overridden if no others need be decoded."""
        return self.dequantize()[at]

    def forward(self, x: Tensor) -> Tensor:
        return apply_dequantized(x, self.dequantize, self.bias)

    def __getattr__(self, name: str):
        if name == "weight":
            return TemporaryWeight(self)
        return super().__getattr__(name)


class TemporaryWeight(Tensor):
    """Stands for a layer's weight: each operation on it works on a dequantized copy.

    Merging an adapter into it would be lost, so `data` is refused, and so is what would write to it.
    """

    layer: DequantizedLinear

    @staticmethod
    def __new__(cls, layer: DequantizedLinear) -> TemporaryWeight:
        shape, device = (layer.out_features, layer.in_features), next(layer.buffers()).device
        made: TemporaryWeight = Tensor._make_wrapper_subclass(cls, shape, dtype=layer.dtype, device=device)
        made.layer = layer
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def, override]
        if func._schema.is_mutable and args and isinstance(args[0], cls):
            raise cls._make_write_error()  # what is written would be lost
        args, kwargs = tree_map_only(cls, lambda weight: weight.layer.dequantize(), (args, kwargs or {}))
        return func(*args, **kwargs)

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        raise self._make_write_error()

    @staticmethod
    def _make_write_error() -> RuntimeError:
        return RuntimeError(
            "a quantized weight cannot be written or merged into: keep the adapter apart, or merge it into dequantize()"
        )


def apply_dequantized(x: Tensor, dequantize: Dequantize, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + bias for W = dequantize(x.dtype).

    Gradients flow to x (..., in). `dequantize` is called once forward and once backward; the bias (out,) is frozen.
    """
    return _DequantizedProduct.apply(x, None, None, 0, dequantize, bias, False)


class Scales(NamedTuple):
    """Weights are scale · code + offset, with one of each for `size` weights of a row; the last group may be shorter.

    Scale and offset are (out, groups), in the dtype that they are stored in. Without offsets all weights of a group are
    in proportion to its scale: codes less a whole zero point, or blocks that have scales of their own inside.
    """

    scale: Tensor
    offset: Tensor | None
    size: int


def multiply_scaled(
    x: Tensor,
    scales: Scales,
    dequantize: Callable[[Scales], Tensor],
    bias: Tensor | None = None,
    *,
    keep: bool = False,
) -> Tensor:
    """x Wᵀ + bias for W = dequantize(scales), with gradients by x, and by scale and offset if they ask for them.

    The gradient of the whole weight is made for the length of one product, and summed by group at once.

    Args:
        x: (..., in).
        scales: float32 (out, groups), rounded to what can be stored.
        dequantize: gives W (out, in), in x's dtype.
        bias: (out,), frozen; cast to x's dtype.
        keep: hold W until the backward pass; else it is made anew there.
    """
    return _DequantizedProduct.apply(x, *scales, lambda _: dequantize(scales), bias, keep)


class _DequantizedProduct(torch.autograd.Function):
    """x Wᵀ + bias, with gradients by x, and by scale and offset unless they are None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        offset: Tensor | None,
        size: int,
        dequantize: Dequantize,
        bias: Tensor | None,
        keep: bool,
    ) -> Tensor:
        weight = dequantize(x.dtype)
        ctx.save_for_backward(None if scale is None else x, scale, offset, weight if keep else None)
        ctx.size, ctx.dequantize = size, dequantize
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, scale, offset, weight) = grads, ctx.saved_tensors
        if weight is None:
            weight = ctx.dequantize(grad.dtype)
        dx = grad @ weight if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:3]):
            return dx, None, None, None, None, None, None
        whole = grad.flatten(0, -2).T @ x.flatten(0, -2)
        by_offset = None if offset is None else _sum_groups(whole, ctx.size)
        # Codes are (weight - offset) / scale, so they need not be unpacked again.
        along = _sum_groups(whole.mul_(weight), ctx.size)
        if offset is not None:
            along = along - offset * by_offset
        by_scale = torch.where(scale == 0, 0.0, along / torch.where(scale == 0, 1.0, scale))
        return dx, by_scale, by_offset, None, None, None, None


def _sum_groups(whole: Tensor, size: int) -> Tensor:
    """Sums (out, groups) over the groups of each row of a matrix (out, in), float32."""
    if whole.shape[1] % size:
        whole = F.pad(whole, (0, -whole.shape[1] % size))
    return whole.unflatten(1, (-1, size)).sum(-1, dtype=torch.float32)
