"""Decoding on a GPU: one kernel a weight, which reads windows of the streams and writes finished weights."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_backends.trellis.code import TrellisCode, make_signs, make_value_table

COLUMNS = 128
"""Columns of a tile, unless a rotation's block has more."""
TILE = 2048
"""Weights of a program."""


def decode_rows(
    codes: Tensor,
    scale: Tensor,
    unit: float,
    at: Tensor | None,
    code: TrellisCode,
    block: int,
    dtype: torch.dtype,
) -> Tensor:
    """As `linear.decode`, on a GPU; whole numbers are in units of `unit` times their row's scale."""
    in_features, rows_out = codes.shape[1], len(scale) if at is None else len(at)
    weight = torch.empty(rows_out, in_features, dtype=dtype, device=codes.device)
    columns = max(COLUMNS, block)
    rows = max(1, TILE // columns)
    table, sign = make_value_table(code.L, codes.device), make_signs(in_features, codes.device)
    grid = (triton.cdiv(rows_out, rows), triton.cdiv(in_features, columns))
    _decode[grid](
        codes,
        scale,
        unit,
        codes if at is None else at,
        table,
        sign,
        weight,
        rows_out,
        in_features,
        len(codes),
        HALF_BITS=code.half_bits,
        L=code.L,
        LOG_BLOCK=block.bit_length() - 1,
        SOME=at is not None,
        ROWS=rows,
        COLUMNS=columns,
    )
    return weight


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    codes,
    scale,
    unit,
    at,
    table,
    sign,
    weight,
    rows,
    in_features,
    stream_bytes,
    HALF_BITS: tl.constexpr,
    L: tl.constexpr,
    LOG_BLOCK: tl.constexpr,
    SOME: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    real = (row < rows)[:, None] & (column < in_features)[None, :]
    own = tl.load(at + row, mask=row < rows, other=0) if SOME else row.to(tl.int64)
    start = own * HALF_BITS >> 1
    first = start >> 3
    word = tl.zeros([ROWS, COLUMNS], dtype=tl.int32)
    for later in tl.static_range(3):  # bytes that a short stream lacks are masked below
        byte = tl.minimum(first + later, stream_bytes - 1)
        source = byte[:, None] * in_features + column[None, :]
        word |= tl.load(codes + source, mask=real, other=0).to(tl.int32) << (8 * later)
    state = (word >> (start & 7).to(tl.int32)[:, None]) & ((1 << L) - 1)
    whole = tl.load(table + state).to(tl.int32)
    whole = apply_hadamard(whole, ROWS * COLUMNS, LOG_BLOCK).reshape(ROWS, COLUMNS)
    factor = tl.load(scale + own, mask=row < rows, other=0).to(tl.float32) * unit
    flip = tl.load(sign + column, mask=column < in_features, other=0)
    found = whole.to(tl.float32) * factor[:, None] * flip[None, :]
    target = row.to(tl.int64)[:, None] * in_features + column[None, :]
    tl.store(weight + target, found.to(weight.dtype.element_ty), mask=real)


@triton.jit
def apply_hadamard(whole, COUNT: tl.constexpr, LOG_BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums and differences of neighbours, then of what is 2, 4, ... apart; blocks lie side by side."""
    for step in tl.static_range(LOG_BLOCK):
        low, high = tl.split(whole.reshape(COUNT // (2 << step), 2, 1 << step).permute(0, 2, 1))
        whole = tl.join(low + high, low - high).permute(0, 2, 1)
    return whole
