"""A linear layer whose weight is bit-packed codes with a scale and an offset for each group of a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qra_backends.modules import DequantizedLinear
from qra_backends.reference import bitpack
from qra_backends.reference.blocks import rows_at_once
from qra_backends.reference.fused import decode_fused
from qra_backends.storage import ceil_div

GROUP_DTYPE = torch.float16  # 11 significant bits: an offset is then exact to 1/32 of a step at 8 bits
GROUP_BYTES = 4  # scale and offset
_GROUP_STORAGE = torch.int16  # floats would be recast by module.to(dtype), and change


class PackedLinear(DequantizedLinear):
    """y = x Wᵀ + bias with W[o, i] = scale[o, g] · code[o, i] + offset[o, g], group g = i // group_size.

    Buffers: `codes` uint8 (ceil(out·in·bits/8),); `scale` and `offset` (out, groups), float16 kept as int16.
    """

    codes: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(
        self,
        codes: Tensor,
        scale: Tensor,
        offset: Tensor,
        *,
        bits: int,
        group_size: int,
        out_features: int,
        in_features: int,
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ):
        super().__init__(out_features, in_features, bias=bias, dtype=dtype)
        self.bits, self.group_size = bits, group_size
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.view(_GROUP_STORAGE))
        self.register_buffer("offset", offset.view(_GROUP_STORAGE))

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), computed in float32 and rounded once to `dtype`."""
        dtype, shape = dtype or self.dtype, (self.out_features, self.in_features)
        scale, offset = self.scale.view(GROUP_DTYPE), self.offset.view(GROUP_DTYPE)
        if self.codes.is_cuda and self.in_features % self.group_size == 0:
            weight = decode_fused(self.codes, scale, offset, self.bits, self.group_size, dtype)
            if weight is not None:
                return weight.view(shape)
        return decode_packed(self.codes, scale, offset, self.bits, self.group_size, shape, dtype)

    def rows(self, at: Tensor) -> Tensor:
        """The rows (n, in) of the weight with indices `at` (n,), as `dequantize` gives them."""
        scale, offset = self.scale.view(GROUP_DTYPE)[at], self.offset.view(GROUP_DTYPE)[at]
        width = self.in_features * self.bits
        if width % 8:
            return self.dequantize()[at]
        packed = self.codes.view(self.out_features, width // 8)[at].reshape(-1)
        codes = bitpack.unpack(packed, self.bits, len(at) * self.in_features).view(len(at), self.in_features)
        return decode(codes, scale, offset, self.group_size).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.bits}, group_size={self.group_size}"


def decode_packed(
    packed: Tensor,
    scale: Tensor,
    offset: Tensor,
    bits: int,
    group_size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Tensor:
    """Weights (out, in) of packed codes, block by block of rows, so that what lies between stays in the cache."""
    columns, at_once = shape[1], 2 * rows_at_once(shape[1], packed.device)  # with fewer arrays than fitting has
    if shape[0] <= at_once:
        codes = bitpack.unpack(packed, bits, shape[0] * columns).view(shape)
        return decode(codes, scale, offset, group_size).to(dtype)
    weight = torch.empty(shape, dtype=dtype, device=packed.device)
    floats = weight if dtype == torch.float32 else torch.empty(at_once, columns, device=packed.device)
    for start in range(0, shape[0], at_once):
        block = slice(start, start + at_once)
        rows = weight[block]
        work = rows if floats is weight else floats[: len(rows)]
        first = start * columns * bits // 8  # a whole byte, as blocks are of a multiple of 8 rows
        codes = bitpack.unpack(packed[first : first + ceil_div(rows.numel() * bits, 8)], bits, rows.numel())
        decode(codes.view(rows.shape), scale[block], offset[block], group_size, out=work)
        if work is not rows:
            rows.copy_(work)
    return weight


def decode(codes: Tensor, scale: Tensor, offset: Tensor, group_size: int, *, out: Tensor | None = None) -> Tensor:
    """Weights float32 (out, in) from integer codes (out, in) and 16-bit scale and offset (out, groups)."""
    weight = codes.to(torch.float32) if out is None else out.copy_(codes)
    rows, columns = weight.shape
    whole = columns // group_size * group_size
    parts = [(weight[:, :whole], group_size)] if whole else []
    if whole < columns:
        parts.append((weight[:, whole:], columns - whole))
    first = 0
    for part, size in parts:
        groups = slice(first, first + ceil_div(part.shape[1], size))
        grouped = part.unflatten(1, (-1, size))  # a view: the products land in `weight`
        grouped.mul_(scale[:, groups, None]).add_(offset[:, groups, None])
        first = groups.stop
    return weight
