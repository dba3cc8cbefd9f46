"""A linear layer whose weight is blocks of a llama.cpp type, as they stand in a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qra_backends.ggml.decode import decode
from qra_backends.ggml.types import GGMLType
from qra_backends.modules import DequantizedLinear


class GGMLLinear(DequantizedLinear):
    """y = x Wᵀ + bias, with W decoded anew from `blocks`, uint8 (out, bytes of a row)."""

    blocks: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], kind: GGMLType, **form: Any):
        super().__init__(tensors, **form)
        self.kind = kind

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), decoded in float32 and rounded once to `dtype`."""
        return decode(self.blocks, self.kind, dtype or self.dtype)

    def rows(self, at: Tensor) -> Tensor:
        return decode(self.blocks[at], self.kind, self.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, type={self.kind.name}"
