"""The base of layers that keep a weight only in quantized form."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from qra_backends.modules.functional import dequantized_linear


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
