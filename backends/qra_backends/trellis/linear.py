"""A linear layer whose weight is a trellis-coded stream for each input, and a scale for each output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qra_backends.modules import DequantizedLinear
from qra_backends.trellis.code import TrellisCode
from qra_backends.trellis.decode import decode

SCALE_DTYPE = torch.float16


class TrellisLinear(DequantizedLinear):
    """y = x Wᵀ + bias, with W decoded and turned back to the layer's own inputs.

    So the weight is the same whether it is kept dequantized or not. To turn the inputs instead would round them anew.

    Buffers: `codes` uint8 (bytes of a stream, in); `scale` (out, 1), float16 kept as int16.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], *, code: TrellisCode, block: int, **form: Any):
        super().__init__(tensors, **form)
        self.code, self.block, self.group_size = code, block, self.in_features

    def scales(self) -> Tensor:
        """Float16 (out, 1), a view."""
        return self.scale.view(SCALE_DTYPE)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), computed in float32 and rounded once to `dtype`."""
        return decode(self.codes, self.scales()[:, 0], None, self.code, self.block, dtype or self.dtype)

    def rows(self, at: Tensor) -> Tensor:
        """The rows (n, in) of the weight with indices `at` (n,), as `dequantize` gives them; no others are decoded."""
        return decode(self.codes, self.scales()[:, 0], at, self.code, self.block, self.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.code.half_bits / 2:g}, L={self.code.L}, block={self.block}"
