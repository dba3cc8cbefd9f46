"""A linear layer whose weight is bit-packed codes with a scale and an offset for each group of a row."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from qra_backends import kernels
from qra_backends.modules import DequantizedLinear
from qra_backends.reference import bitpack
from qra_backends.storage import ceil_div, choose_block_rows

GROUP_DTYPE = torch.float16  # 11 significant bits: an offset is then exact to 1/32 of a step at 8 bits


class GroupedLinear(DequantizedLinear):
    """y = x Wᵀ + bias with W[o, i] = scale[o, g] · code[o, i] + offset[o, g], group g = i // group_size."""

    bits: int
    group_size: int

    @abstractmethod
    def read_groups(self) -> tuple[Tensor, Tensor, Tensor]:
        """Packed codes uint8, one stream for all rows, and the scale and offset (out, groups) of each group."""

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in), computed in float32 and rounded once to `dtype`."""
        return self._decode_rows(None, dtype or self.dtype)

    def dequantize_rows(self, at: Tensor) -> Tensor:
        return self._decode_rows(at, self.dtype)

    def _decode_rows(self, at: Tensor | None, dtype: torch.dtype) -> Tensor:
        stream, scale, offset = self.read_groups()
        shape, width = (self.out_features, self.in_features), self.in_features * self.bits
        if kernels.is_usable(stream.device):
            from qra_backends.kernels.groupwise import decode as decode_at_once

            return decode_at_once(stream, scale, offset, self.bits, self.group_size, shape, dtype, at=at)
        if at is not None and width % 8 == 0:
            packed = stream.view(self.out_features, width // 8)[at].reshape(-1)
            codes = bitpack.unpack(packed, self.bits, len(at) * self.in_features)
            return decode(
                codes.view(len(at), self.in_features), scale[at], offset[at], self.group_size, dtype
            )
        weight = torch.empty(shape, dtype=dtype, device=stream.device)
        # Block by block of rows, so that what lies between stays in the cache, with fewer arrays than fitting has.
        step = 2 * choose_block_rows(self.in_features, stream.device)
        for start in range(0, self.out_features, step):
            block = slice(start, start + step)
            rows, first = (
                weight[block],
                start * width // 8,
            )  # a whole byte, as blocks are of a multiple of 8 rows
            packed = stream[first : first + ceil_div(len(rows) * width, 8)]
            codes = bitpack.unpack(packed, self.bits, rows.numel()).view(rows.shape)
            decode(codes, scale[block], offset[block], self.group_size, dtype, out=rows)
        return weight if at is None else weight[at]


class PackedLinear(GroupedLinear):
    """Buffers: `codes` uint8 (ceil(out·in·bits/8),); `scale` and `offset` (out, groups), float16 kept as int16."""

    def read_groups(self) -> tuple[Tensor, Tensor, Tensor]:
        stored = self.tensors()
        return stored["codes"], stored["scale"], stored["offset"]


def decode(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    group_size: int,
    dtype: torch.dtype,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Weights (out, in) in `dtype` from integer codes (out, in), and scale and offset (out, groups), floats.

    Computed in float32 and rounded once; one operation for whole groups, another for shorter ones at the rows' ends.
    """
    weight = torch.empty(codes.shape, dtype=dtype, device=codes.device) if out is None else out
    scale, offset = scale.float()[..., None], offset.float()[..., None]
    columns = codes.shape[1]
    whole = columns // group_size * group_size
    for start, stop, size in ((0, whole, group_size), (whole, columns, columns - whole)):
        if start < stop:
            own, part = slice(start // group_size, ceil_div(stop, group_size)), slice(start, stop)
            values, into = (tensor[:, part].unflatten(1, (-1, size)) for tensor in (codes, weight))
            torch.addcmul(offset[:, own], values, scale[:, own], out=into)
    return weight
