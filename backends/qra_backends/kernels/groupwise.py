"""Codes with a scale and an offset or zero point a group to weights, by one kernel: of all rows, or of some.

A thread takes eight codes side by side, which fill as many whole bytes as a code has bits, forms one word of them, and
writes eight weights. Products of a code and a scale are exact in float32, so whether a compiler fuses product and sum
makes no difference: the weights are those of the plain way, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, EIGHTS = 16, 16
"""Of a tile, of 16 x 128 weights."""


def decode(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor | None,
    bits: int,
    size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    at: Tensor | None = None,
    zeros: tuple[Tensor | None, int, int] | None = None,
    columns_first: bool = False,
) -> Tensor:
    """The weight (out, in) in `dtype`, or its rows `at` (n,); computed in float32 and rounded once.

    Args:
        codes: of whole bytes, one stream for all rows. With `columns_first` int32 words (words of a row, out).
        scale: (out, groups), of floats; with `columns_first` (groups, out).
        offset: like scale: weights are scale · code + offset. None: they are scale · (code - zero).
        size: weights of a group; the last of a row may have fewer.
        zeros: a `choice.Zeros`.
    """
    (out, columns), rows = shape, shape[0] if at is None else len(at)
    weight = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    groups = triton.cdiv(columns, size)
    words, word_bytes, group_bytes = zeros or (None, 0, 0)
    kind = "offset" if zeros is None else "middle" if words is None else "zeros"
    grid = (triton.cdiv(rows, ROWS), triton.cdiv(columns, 8 * EIGHTS))
    _decode[grid](
        codes.view(torch.uint8), scale, scale if offset is None else offset,
        codes if words is None else words.view(torch.uint8), codes if at is None else at, weight,
        rows, columns, codes.nbytes, 0 if columns_first else columns * bits, 4 if columns_first else 0,
        4 * out if columns_first else 4, *((1, out) if columns_first else (groups, 1)),
        word_bytes, group_bytes,
        BITS=bits, SIZE=size, SOME=at is not None, KIND=kind, ROWS=ROWS, EIGHTS=EIGHTS,
    )  # fmt: skip
    return weight


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    codes, scale, offset, zeros, at, weight, rows, columns, code_bytes, row_bits, row_bytes, word_bytes,
    scale_row, scale_group, zero_word, zero_group,
    BITS: tl.constexpr, SIZE: tl.constexpr, SOME: tl.constexpr, KIND: tl.constexpr,
    ROWS: tl.constexpr, EIGHTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    eight = tl.program_id(1) * EIGHTS + tl.arange(0, EIGHTS)
    lane = tl.arange(0, 8)
    source = tl.load(at + row, mask=row < rows, other=0).to(tl.int64) if SOME else row
    real = (row < rows)[:, None] & (8 * eight < columns)[None, :]
    first = source[:, None] * row_bits + 8 * BITS * eight[None, :]
    word = tl.zeros([ROWS, EIGHTS], dtype=tl.int64)
    for later in tl.static_range(BITS if BITS == 8 else BITS + 1):  # a row may begin within a byte
        byte = (first >> 3) + later
        address = (byte >> 2) * word_bytes + (byte & 3) + source[:, None] * row_bytes
        found = tl.load(codes + address, mask=real & (address < code_bytes), other=0)
        word |= found.to(tl.int64) << (8 * later)
    code = ((word >> (first & 7))[:, :, None] >> (BITS * lane)[None, None, :].to(tl.int64)) & ((1 << BITS) - 1)

    if SIZE % 8 == 0:  # an eight has one scale
        group = (eight // (SIZE // 8))[None, :, None]
        known = real[:, :, None]
    else:
        group = ((8 * eight[:, None] + lane[None, :]) // SIZE)[None, :, :]
        known = real[:, :, None] & ((8 * eight[:, None] + lane[None, :]) < columns)[None, :, :]
    own = source[:, None, None] * scale_row + group * scale_group
    s = tl.load(scale + own, mask=known, other=0).to(tl.float32)
    if KIND == "offset":
        found = code.to(tl.float32) * s + tl.load(offset + own, mask=known, other=0).to(tl.float32)
    elif KIND == "middle":
        found = (code - (1 << (BITS - 1))).to(tl.float32) * s
    else:
        begin = source * BITS
        low = (begin >> 3)[:, None, None] + tl.zeros_like(own)
        high = low + 1
        both = tl.load(zeros + (low >> 2) * zero_word + (low & 3) + group * zero_group, mask=known, other=0).to(
            tl.int32
        )
        if 8 % BITS:
            more = known & ((begin & 7) + BITS > 8)[:, None, None]
            both |= (
                tl.load(zeros + (high >> 2) * zero_word + (high & 3) + group * zero_group, mask=more, other=0).to(
                    tl.int32
                )
                << 8
            )
        zero = (both >> (begin & 7).to(tl.int32)[:, None, None]) & ((1 << BITS) - 1)
        found = (code - zero).to(tl.float32) * s
    column = 8 * eight[:, None] + lane[None, :]
    inside = real[:, :, None] & (column < columns)[None, :, :]
    tl.store(weight + row[:, None, None] * columns + column[None, :, :], found.to(weight.dtype.element_ty), mask=inside)
