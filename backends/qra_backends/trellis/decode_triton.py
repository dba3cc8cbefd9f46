"""Decoding and multiplying on a GPU: a kernel reads windows of the streams and writes finished weights, or products.

Of products with few inputs no weight is written to memory. A byte of a stream is read once by the program of its rows.
With one input at 2 bits that is an eighth of the bytes that a product in 16 bits reads, so it should take about an
eighth of the time while memory is what limits it. It was run in Triton's interpreter and compiled for five targets
(tests/backends/kernels), and never timed on a card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, count_word_rows, make_signs, make_value_table

TILE_COLUMNS = 128
"""Columns of a tile, unless a rotation's block has more."""
WEIGHTS_PER_PROGRAM = 2048
"""Weights of a program."""
PRODUCT_COLUMNS = 64
"""Columns that a program reads at a time."""
MAX_WORDS = 16
"""Words of all inputs together that it adds up at a time; more would not fit in a thread's registers."""


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
    columns = max(TILE_COLUMNS, block)
    rows = max(1, WEIGHTS_PER_PROGRAM // columns)
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
        TILE_COLUMNS=columns,
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
    TILE_COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    real = (row < rows)[:, None] & (column < in_features)[None, :]
    own = tl.load(at + row, mask=row < rows, other=0) if SOME else row.to(tl.int64)
    start = own * HALF_BITS >> 1
    first = start >> 3
    word = tl.zeros([ROWS, TILE_COLUMNS], dtype=tl.int32)
    for later in tl.static_range(3):  # bytes that a short stream lacks are masked below
        byte = tl.minimum(first + later, stream_bytes - 1)
        source = byte[:, None] * in_features + column[None, :]
        word |= tl.load(codes + source, mask=real, other=0).to(tl.int32) << (8 * later)
    state = (word >> (start & 7).to(tl.int32)[:, None]) & ((1 << L) - 1)
    whole = tl.load(table + state).to(tl.int32)
    whole = apply_hadamard(whole, ROWS * TILE_COLUMNS, LOG_BLOCK).reshape(ROWS, TILE_COLUMNS)
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


def make_product(
    codes: Tensor,
    scale: Tensor,
    code: TrellisCode,
    block: int,
    factors: Sequence[tuple[Tensor, Tensor, float]] = (),
) -> Callable[[Tensor], Tensor]:
    """As `decode_numba.make_product`, on a GPU."""
    (out_features, in_features), table = (len(scale), codes.shape[1]), make_value_table(code.L, codes.device)
    sign, rows = make_signs(in_features, codes.device), count_word_rows(code)

    def multiply(x: Tensor) -> Tensor:
        rotated = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        columns = max(block, PRODUCT_COLUMNS)
        grid = (len(x), triton.cdiv(in_features, columns))
        _rotate[grid](
            x.contiguous(),
            sign,
            rotated,
            in_features,
            VALUE_UNIT / math.sqrt(block),
            LOG_BLOCK=block.bit_length() - 1,
            TILE_COLUMNS=columns,
        )
        product = torch.empty(len(x), out_features, dtype=torch.float32, device=x.device)
        tokens = triton.next_power_of_2(len(x))
        words = min(4, max(1, MAX_WORDS // tokens))
        _multiply[(triton.cdiv(out_features, rows * words),)](
            codes,
            scale,
            table,
            rotated,
            product,
            len(x),
            out_features,
            in_features,
            len(codes),
            HALF_BITS=code.half_bits,
            L=code.L,
            ROWS=rows,
            MAX_WORDS=words,
            TOKENS=tokens,
            TILE_COLUMNS=PRODUCT_COLUMNS,
        )
        for a, b, scaling in factors:
            product.addmm_(x.float() @ a.float().T, b.float().T, alpha=scaling)
        return product

    return multiply


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    x, sign, rotated, in_features, factor, LOG_BLOCK: tl.constexpr, TILE_COLUMNS: tl.constexpr
):
    column = tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    real = column < in_features
    place = tl.program_id(0).to(tl.int64) * in_features + column
    values = tl.load(x + place, mask=real, other=0).to(tl.float32) * tl.load(
        sign + column, mask=real, other=0
    )
    values = apply_hadamard(values, TILE_COLUMNS, LOG_BLOCK).reshape(TILE_COLUMNS)
    tl.store(rotated + place, values * factor, mask=real)


@triton.jit
def _multiply(  # type: ignore[no-untyped-def]
    codes,
    scale,
    table,
    rotated,
    product,
    tokens,
    out_features,
    in_features,
    stream_bytes,
    HALF_BITS: tl.constexpr,
    L: tl.constexpr,
    ROWS: tl.constexpr,
    MAX_WORDS: tl.constexpr,
    TOKENS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    first = (tl.program_id(0) * MAX_WORDS + tl.arange(0, MAX_WORDS)) * ROWS  # the first row of each word
    byte = (first * HALF_BITS >> 1) >> 3
    lane, token = tl.arange(0, TILE_COLUMNS), tl.arange(0, TOKENS)
    row = first[:, None] + tl.arange(0, ROWS)[None, :]
    shift = (row * HALF_BITS >> 1) - 8 * byte[:, None]
    sums = tl.zeros([TOKENS, MAX_WORDS, ROWS], dtype=tl.float32)
    for start in range(0, in_features, TILE_COLUMNS):
        column = start + lane
        real = column < in_features
        word = tl.zeros([MAX_WORDS, TILE_COLUMNS], dtype=tl.int32)
        for later in tl.static_range(4):  # bytes that a short stream lacks are masked below
            at = tl.minimum(byte + later, stream_bytes - 1).to(tl.int64)
            source = at[:, None] * in_features + column[None, :]
            word |= tl.load(codes + source, mask=real[None, :], other=0).to(tl.int32) << (8 * later)
        state = (word[:, None, :] >> shift[:, :, None]) & ((1 << L) - 1)
        value = tl.load(table + state).to(tl.float32)
        place = token[:, None] * in_features + column[None, :]
        x = tl.load(rotated + place, mask=(token < tokens)[:, None] & real[None, :], other=0)
        sums += tl.sum(value[None, :, :, :] * x[:, None, None, :], axis=3)
    inside = row < out_features
    factor = tl.load(scale + row, mask=inside, other=0).to(tl.float32)
    target = token[:, None, None] * out_features + row[None, :, :]
    tl.store(
        product + target, sums * factor[None, :, :], mask=(token < tokens)[:, None, None] & inside[None, :, :]
    )
