"""Codes with a scale and an offset a group to weights, by one kernel: of all rows, or of some.

A thread takes eight codes side by side, which fill as many whole bytes as a code has bits, forms one word of them, and
writes eight weights. Products of a code and a scale are exact in float32, so whether a compiler fuses product and sum
makes no difference: the weights are those of the plain way, bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS, TILE_EIGHTS = 16, 16
"""Rows, and groups of eight columns, of a tile of 16 x 128 weights."""


def decode(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    bits: int,
    size: int,
    shape: tuple[int, int],
    dtype: torch.dtype,
    *,
    at: Tensor | None = None,
) -> Tensor:
    """The weight (out, in) in `dtype`, or its rows `at` (n,); computed in float32 and rounded once.

    Args:
        codes: uint8, one stream for all rows.
        scale, offset: (out, groups), of floats: weights are scale · code + offset.
        size: weights of a group; the last of a row may have fewer.
    """
    columns, rows = shape[1], shape[0] if at is None else len(at)
    weight = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    groups = triton.cdiv(columns, size)
    grid = (triton.cdiv(rows, TILE_ROWS), triton.cdiv(columns, 8 * TILE_EIGHTS))
    _decode[grid](
        codes,
        scale,
        offset,
        codes if at is None else at,
        weight,
        rows,
        columns,
        codes.nbytes,
        groups,
        BITS=bits,
        SIZE=size,
        SOME=at is not None,
        TILE_ROWS=TILE_ROWS,
        TILE_EIGHTS=TILE_EIGHTS,
    )
    return weight


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    codes,
    scale,
    offset,
    at,
    weight,
    rows,
    columns,
    code_bytes,
    groups,
    BITS: tl.constexpr,
    SIZE: tl.constexpr,
    SOME: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_EIGHTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    eight = tl.program_id(1) * TILE_EIGHTS + tl.arange(0, TILE_EIGHTS)
    lane = tl.arange(0, 8)
    source = tl.load(at + row, mask=row < rows, other=0).to(tl.int64) if SOME else row
    real = (row < rows)[:, None] & (8 * eight < columns)[None, :]
    first = source[:, None] * columns * BITS + 8 * BITS * eight[None, :]
    word = tl.zeros([TILE_ROWS, TILE_EIGHTS], dtype=tl.int64)
    for later in tl.static_range(BITS if BITS == 8 else BITS + 1):  # a row may begin within a byte
        byte = (first >> 3) + later
        found = tl.load(codes + byte, mask=real & (byte < code_bytes), other=0)
        word |= found.to(tl.int64) << (8 * later)
    code = ((word >> (first & 7))[:, :, None] >> (BITS * lane)[None, None, :].to(tl.int64)) & (
        (1 << BITS) - 1
    )

    if SIZE % 8 == 0:  # an eight has one scale
        group = (eight // (SIZE // 8))[None, :, None]
        known = real[:, :, None]
    else:
        group = ((8 * eight[:, None] + lane[None, :]) // SIZE)[None, :, :]
        known = real[:, :, None] & ((8 * eight[:, None] + lane[None, :]) < columns)[None, :, :]
    own = source[:, None, None] * groups + group
    s = tl.load(scale + own, mask=known, other=0).to(tl.float32)
    found = code.to(tl.float32) * s + tl.load(offset + own, mask=known, other=0).to(tl.float32)
    column = 8 * eight[:, None] + lane[None, :]
    inside = real[:, :, None] & (column < columns)[None, :, :]
    tl.store(
        weight + row[:, None, None] * columns + column[None, :, :],
        found.to(weight.dtype.element_ty),
        mask=inside,
    )
