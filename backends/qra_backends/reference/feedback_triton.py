"""The loop over columns of error feedback, as one kernel for a block of columns: rows are independent.

A program holds the block's columns of 32 rows in registers, a row a thread, and takes one column after another: the
plain way launches a dozen kernels for each. Rounding and the order of operations are those of the plain way.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS_PER_PROGRAM = 32
"""Rows of a program, which is one warp."""


def round_columns(
    block: Tensor, inverse: Tensor, groups: Tensor, scale: Tensor, offset: Tensor, highest: float
) -> tuple[Tensor, Tensor]:
    """Codes uint8 and errors float32 (columns, rows) of a block of columns of a weight, float32 (columns, rows).

    Args:
        inverse: (columns, columns), of the inverse Hessian's upper factor.
        groups: int64 (columns,), of each column.
        scale, offset: float32 (groups, rows).
        highest: the largest code.
    """
    columns, rows = block.shape
    codes, errors = torch.empty_like(block, dtype=torch.uint8), torch.empty_like(block)
    _round[(triton.cdiv(rows, ROWS_PER_PROGRAM),)](
        block,
        inverse.contiguous(),
        groups,
        scale,
        offset,
        highest,
        codes,
        errors,
        rows,
        columns,
        COLUMNS=triton.next_power_of_2(columns),
        ROWS_PER_PROGRAM=ROWS_PER_PROGRAM,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return codes, errors


@triton.jit
def _round(  # type: ignore[no-untyped-def]
    block,
    inverse,
    groups,
    scale,
    offset,
    highest,
    codes,
    errors,
    rows,
    columns,
    COLUMNS: tl.constexpr,
    ROWS_PER_PROGRAM: tl.constexpr,
):
    row, column = tl.program_id(0) * ROWS_PER_PROGRAM + tl.arange(0, ROWS_PER_PROGRAM), tl.arange(0, COLUMNS)
    inside = row < rows
    at = column[:, None] * rows + row[None, :]
    left = tl.load(block + at, mask=(column < columns)[:, None] & inside[None, :], other=0)
    for i in range(columns):
        group = tl.load(groups + i) * rows + row
        s, o = tl.load(scale + group, mask=inside, other=0), tl.load(offset + group, mask=inside, other=0)
        own = tl.sum(tl.where((column == i)[:, None], left, 0.0), axis=0)
        code = tl.minimum(tl.maximum(tl.div_rn(own - o, tl.where(s == 0, 1.0, s)), 0.0), highest)
        code = code + 8388608.0 - 8388608.0  # to the nearest, ties to even: 2^23 leaves a float32 no fraction
        error = tl.div_rn(own - (code * s + o), tl.load(inverse + i * columns + i) + tl.zeros_like(own))
        place = i * rows + row
        tl.store(codes + place, code.to(tl.uint8), mask=inside)
        tl.store(errors + place, error, mask=inside)
        later = (column > i) & (column < columns)
        spread = tl.load(inverse + i * columns + column, mask=later, other=0)
        left -= spread[:, None] * error[None, :]
