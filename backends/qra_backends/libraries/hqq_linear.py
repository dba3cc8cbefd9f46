"""hqq's linear layer, made from given tensors and moving with its model; needs hqq at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hqq.core import quantize
from torch import Tensor, nn

from qra_backends.kernels import choice
from qra_backends.modules import dequantized_linear


class HQQLinear(quantize.HQQLinear):
    """An hqq layer that never holds its original weight, and whose scales follow `model.to(device)`.

    The library's own layer moves only its codes when a parent module is moved, keeps the unquantized layer alive
    unless told to empty it, and casts its 16-bit scales to the dtype that it computes in. PEFT goes by the class name.
    """

    def __init__(
        self, config: dict[str, Any], *, codes: Tensor, meta: dict[str, Any], bias: Tensor | None, dtype: torch.dtype
    ):
        super().__init__(None, config, compute_dtype=dtype, device=str(codes.device), initialize=False)
        self.W_q = nn.Parameter(codes, requires_grad=False)
        self.meta = meta
        self.bias = bias
        self.in_features, self.out_features = meta["shape"][::-1]
        self.in_gpu = self.ready = True

    @classmethod
    def set_backend(cls, backend: Any) -> None:
        """The library would put its own product in place of `forward`, each time that a layer is made."""

    def forward(self, x: Tensor) -> Tensor:
        """As the library's, which takes no other dtype than the layer's, and none at all under autocast."""
        y = dequantized_linear(x, self.dequantize)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) as the library computes it, cast to `dtype` if one is given."""
        if choice.is_usable(self.W_q.device):
            from qra_backends.libraries.hqq_triton import decode

            weight = decode(self.W_q, self.meta)
        else:
            weight = super().dequantize()
        return weight if dtype is None else weight.to(dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Those that the layer was made of, by name."""
        return {"W_q": self.W_q.data, "scale": self.meta["scale"], "zero": self.meta["zero"]}

    def rows(self, at: Tensor) -> Tensor:
        """The rows (n, in) of the weight with indices `at` (n,)."""
        return self.dequantize()[at]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HQQLinear:
        super()._apply(fn, recurse)
        device = self.W_q.device
        for key in ("scale", "zero"):
            self.meta[key] = self.meta[key].to(device)
        if self.bias is not None:
            self.bias = self.bias.to(device)
        self.device = str(device)
        return self
