"""A linear layer whose weight is codes less a whole zero point, times a scale: the tensors of compressed-tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qra_backends.kernels.choice import decoder
from qra_backends.modules import DequantizedLinear
from qra_backends.reference import bitpack
from qra_backends.reference.packed import decode_packed
from qra_backends.storage import ceil_div

WORD = 32
SCALE_DTYPE = torch.bfloat16


class CompressedIntegers(DequantizedLinear):
    """y = x Wᵀ + bias with W[o, i] = scale[o, g] · (code[o, i] - zero[o, g]), g = i // group_size.

    Buffers: the tensors of the `pack-quantized` form by their names (see `lay_out`), the scales as integers of their
    size. Without weight_zero_point the zero is 2^(bits - 1) everywhere.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, bits: int, group_size: int, **form: Any):
        super().__init__(tensors, **form)
        self.bits, self.group_size = bits, group_size

    def zeros(self) -> Tensor:
        """Zero points float32 (out, groups)."""
        tensors = self.tensors()
        groups = tensors["weight_scale"].shape[1]
        if "weight_zero_point" not in tensors:
            middle = 2.0 ** (self.bits - 1)
            return torch.full((self.out_features, groups), middle, device=tensors["weight_packed"].device)
        stream = tensors["weight_zero_point"].t().contiguous().view(torch.uint8).flatten()
        zeros = bitpack.unpack(stream, self.bits, groups * self.out_features)
        return zeros.view(groups, self.out_features).t().float().contiguous()

    def scale(self) -> Tensor:
        """Scales float32 (out, groups)."""
        return self.tensors()["weight_scale"].to(torch.float32)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in): a scale has 8 bits and a step 9, so the product is exact in float32; rounded once."""
        form = (self.bits, self.group_size, (self.out_features, self.in_features), dtype or self.dtype)
        tensors = self.tensors()
        packed = tensors["weight_packed"]
        kernel = decoder(packed.device)
        if kernel is not None:
            return kernel(packed, tensors["weight_scale"], None, *form, zeros=tensors.get("weight_zero_point"))
        scale = self.scale()
        offset = (self.zeros() * scale).neg_()
        return decode_packed(packed.view(torch.uint8).flatten(), scale, offset, *form)

    def extra_repr(self) -> str:
        symmetric = "weight_zero_point" not in self._buffers
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}, symmetric={symmetric}"


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 (out, in) as little-endian words int32 (out, ceil(in · bits / 32)), one stream of bits a row."""
    out_features, in_features = codes.shape
    padded = F.pad(codes, (0, -in_features % WORD))
    words = bitpack.pack(padded, bits).view(torch.int32).view(out_features, -1)
    return words[:, : ceil_div(in_features * bits, WORD)].contiguous()


def lay_out(words: Tensor, scale: Tensor, zero: Tensor | None, bits: int) -> dict[str, Tensor]:
    """The tensors of compressed-tensors' `pack-quantized` form.

    Shapes: weight_packed int32 (out, in·bits/32), weight_scale bfloat16 (out, groups), weight_zero_point int32
    (out·bits/32, groups) unless `zero` is None, weight_shape int64 (2,).

    Args:
        words: of `pack_words`; scale and zero: float32 (out, groups).
    """
    shape = torch.tensor([len(words), words.shape[1] * WORD // bits], device=words.device)
    tensors = {"weight_packed": words, "weight_scale": scale.to(SCALE_DTYPE).contiguous(), "weight_shape": shape}
    if zero is None:
        return tensors
    stream = bitpack.pack(zero.t().contiguous().to(torch.uint8), bits).view(torch.int32)
    return {**tensors, "weight_zero_point": stream.view(zero.shape[1], -1).t().contiguous()}
