"""Weights in groups of a row, w ≈ scale · code + offset: fitted, packed into bytes without a gap, and decoded.

Codes form one little-endian stream of bits: code i lies in bits [i·b, (i+1)·b). n codes take ceil(n·b/8) bytes.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from qra_backends import kernels
from qra_backends.modules import DequantizedLinear
from qra_backends.storage import ceil_div, choose_block_rows

WIDTHS = (2, 3, 4, 5, 6, 8)
GROUP_DTYPE = torch.float16  # 11 significant bits: an offset is then exact to 1/32 of a step at 8 bits
RANGE_METHODS = ("minmax", "mse")
_SHRINK_FACTORS = tuple(1 - 0.05 * i for i in range(8))  # shares of the full range to start from
_NARROWEST_WHOLE = 5  # bits from which on the full range is the only start: there is next to nothing to clip
_MIN_SCALE = 2.0**-24  # of float16
_REFITS = 2  # least-squares steps from each start; more gained under 1% of squared error


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
        if kernels.are_kernels_usable(stream.device):
            from qra_backends.kernels.groupwise import decode as decode_at_once

            return decode_at_once(stream, scale, offset, self.bits, self.group_size, shape, dtype, at=at)
        if at is not None and width % 8 == 0:
            packed = stream.view(self.out_features, width // 8)[at].reshape(-1)
            codes = unpack(packed, self.bits, len(at) * self.in_features)
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
            codes = unpack(packed, self.bits, rows.numel()).view(rows.shape)
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


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packed bytes, uint8 (ceil(n·bits/8),), of uint8 codes of any shape with n elements, each below 2^bits."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.clone()
    eights = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    wide = torch.int32 if bits <= 4 else torch.int64
    word = torch.zeros(len(eights), dtype=wide, device=flat.device)
    for i in range(8):  # eight codes fill `bits` whole bytes; of 4 bits, also the one of the sign
        word |= eights[:, i].to(wide) << (bits * i)
    stream = torch.empty(len(word), bits, dtype=torch.uint8, device=flat.device)
    for i in range(bits):
        stream[:, i] = (word >> (8 * i)) & 0xFF
    return stream.view(-1)[: ceil_div(codes.numel() * bits, 8)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes, uint8 (count,), of bytes made by `pack`."""
    if bits == 8:
        return packed[:count]
    if bits == 4:
        word = packed.to(torch.int16)  # ba -> 0b0a
        return word.bitwise_or_(word << 4).bitwise_and_(0x0F0F).view(torch.uint8)[:count]
    if bits == 2:
        # dcba -> 00dc00ba -> 0d0c0b0a; the copies that a factor adds do not overlap.
        word = packed.to(torch.int32)
        word = word.mul_(0x1001).bitwise_and_(0x000F000F).mul_(0x41).bitwise_and_(0x03030303)
        return word.view(torch.uint8)[:count]
    # Eight codes fill whole bytes, and each lies within two.
    stream = F.pad(packed, (0, -len(packed) % bits)).view(-1, bits).to(torch.int16)
    codes = torch.empty(len(stream), 8, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = stream[:, byte] >> shift
        if shift + bits > 8:
            code.add_(stream[:, byte + 1], alpha=2 ** (8 - shift))  # their bits do not overlap
        torch.bitwise_and(code, 2**bits - 1, out=codes[:, i])
    return codes.view(-1)[:count]


def fit_groups(
    weight: Tensor, bits: int, group_size: int, *, ranges: str = "minmax", importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scale and offset of each group.

    `minmax` spans each group, as far as its scale in float16 does. `mse` looks for the least squared error: from
    several shrunken ranges, round, refit scale and offset to the codes by least squares, and keep the best seen; never
    worse than `minmax`.

    Args:
        weight: float32 (out, in).
        importance: (in,), weight of each column's squared error in `mse`; all equal where None.

    Returns:
        scale, offset: float16 (out, ceil(in / group_size)).
    """
    if importance is None:
        importance = torch.ones(weight.shape[1], device=weight.device)
    fit = _fit_mse if ranges == "mse" else _fit_min_max
    parts = [
        fit(columns.unflatten(1, (-1, size)), weights.unflatten(0, (-1, size)), bits)
        for columns, weights, size in _split(weight, importance, group_size)
    ]
    scale, offset = (torch.cat(tensors, dim=1).to(GROUP_DTYPE) for tensors in zip(*parts, strict=True))
    return scale, offset


def encode(weight: Tensor, scale: Tensor, offset: Tensor, bits: int, group_size: int) -> Tensor:
    """Nearest codes, uint8 (out, in), under the scale and offset (out, groups) as they are stored."""
    columns = torch.arange(weight.shape[1], device=weight.device) // group_size
    return round_to_codes(weight, scale.float()[:, columns], offset.float()[:, columns], bits).to(torch.uint8)


def round_to_codes(
    weight: Tensor, scale: Tensor, offset: Tensor, bits: int, *, out: Tensor | None = None
) -> Tensor:
    """Nearest codes as floats; 0 where the scale is 0, as in a group of equal weights. All arguments broadcast."""
    codes = torch.sub(weight, offset, out=out).div_(torch.where(scale == 0, 1.0, scale))
    return codes.round_().clamp_(0, 2**bits - 1)


def _split(weight: Tensor, importance: Tensor, group_size: int) -> list[tuple[Tensor, Tensor, int]]:
    """The columns in whole groups, then those left over as one shorter group."""
    columns = weight.shape[1]
    whole = columns // group_size * group_size
    parts = [
        (weight[:, :whole], importance[:whole], group_size),
        (weight[:, whole:], importance[whole:], columns - whole),
    ]
    return [part for part in parts if part[0].shape[1]]


def _fit_min_max(weight: Tensor, importance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = weight.aminmax(dim=-1)
    return _round_scale_to_stored((high - low) / (2**bits - 1)), low


def _fit_mse(weight: Tensor, importance: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and offset (out, groups) of weight (out, groups, size); importance (groups, size)."""
    # A group whose inputs were never seen still has to be coded: the floor makes its columns equal.
    importance = importance / importance.mean(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    importance = importance + 1e-6
    total = importance.sum(-1, keepdim=True)
    mean_weight = (importance * weight).sum(-1, keepdim=True) / total
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    center, half = (high + low) / 2, (high - low) / 2
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_offset = torch.zeros_like(low), low
    centered = weight - mean_weight
    codes, work = torch.empty_like(centered), torch.empty_like(centered)
    for share in _SHRINK_FACTORS if bits < _NARROWEST_WHOLE else _SHRINK_FACTORS[:1]:
        scale, offset = 2 * share * half / (2**bits - 1), center - share * half
        for refit in range(_REFITS + 1):
            scale, offset = _round_scale_to_stored(scale), _round_to_stored(offset)
            round_to_codes(weight, scale, offset, bits, out=codes)
            torch.mul(codes, scale, out=work).add_(offset).sub_(weight)
            error = work.square_().mul_(importance).sum(-1, keepdim=True)
            better = error < best_error
            best_error = torch.where(better, error, best_error)
            best_scale = torch.where(better, scale, best_scale)
            best_offset = torch.where(better, offset, best_offset)
            if refit < _REFITS:
                mean_code = torch.mul(importance, codes, out=work).sum(-1, keepdim=True) / total
                weighted = torch.mul(codes.sub_(mean_code), importance, out=work)
                variance = codes.mul_(weighted).sum(-1, keepdim=True)
                covariance = weighted.mul_(centered).sum(-1, keepdim=True)
                scale = torch.where(variance > 0, covariance / variance.clamp_min(1e-20), scale)
                offset = mean_weight - scale * mean_code
    return best_scale.squeeze(-1), best_offset.squeeze(-1)


def _round_to_stored(values: Tensor) -> Tensor:
    """Values as they are read back: the codes must suit the rounded scale and offset."""
    return values.to(GROUP_DTYPE).to(torch.float32)


def _round_scale_to_stored(scale: Tensor) -> Tensor:
    """Scale as it is read back, never 0 for weights that differ: their group would be lost in one code."""
    stored = _round_to_stored(scale)
    return torch.where((scale > 0) & (stored == 0), _MIN_SCALE, stored)
