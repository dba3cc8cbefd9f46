"""Decoding and rotating on a CPU, compiled by numba when first used: a row at a time, which stays in the cache."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from qra_backends.reference.blocks import choose_block_rows
from qra_backends.trellis.code import TrellisCode, make_state_values
from qra_backends.trellis.jit import OPTIONS, compile_once
from qra_backends.trellis.rotation import make_signs


def decode_rows(
    codes: Tensor, factor: Tensor, at: Tensor, code: TrellisCode, block: int, dtype: torch.dtype
) -> Tensor:
    """As `linear.decode_rows`, on the host."""
    in_features = codes.shape[1]
    weight = torch.empty(len(at), in_features, dtype=dtype)
    step = max(1, choose_block_rows(in_features, codes.device))
    floats = (
        weight
        if dtype == torch.float32
        else torch.empty(min(step, len(at)), in_features, dtype=torch.float32)
    )
    starts, sign = code.locate_states(at).numpy(), make_signs(in_features, codes.device).numpy()
    for start in range(0, len(at), step):
        own = slice(start, start + step)
        rows = weight[own]
        work = rows if floats is weight else floats[: len(rows)]
        _decode(
            codes.numpy(),
            starts[own],
            make_state_values(code.L),
            factor[own].numpy(),
            sign,
            block,
            work.numpy(),
        )
        if work is not rows:
            rows.copy_(work)
    return weight


@numba.njit(**OPTIONS)
def _apply_hadamard(weights, block):  # type: ignore[no-untyped-def]
    size = block >> 1
    while size >= (8 if block >= 8 else 1):
        for pair in range(0, len(weights), 2 * size):
            ones, others = weights[pair : pair + size], weights[pair + size : pair + 2 * size]
            for i in range(size):
                one, other = ones[i], others[i]
                ones[i], others[i] = one + other, one - other
        size >>= 1
    if block >= 8:
        _transform_eights(weights)


@numba.njit(**OPTIONS)
def _transform_eights(weights):  # type: ignore[no-untyped-def]
    """The last three stages of a Hadamard product together: apart, they are too short for vectors."""
    for i in range(0, len(weights), 8):
        a, b, c, d, e, f, g, h = weights[i : i + 8]
        a, b, c, d, e, f, g, h = a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h
        a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
        weights[i], weights[i + 1], weights[i + 2], weights[i + 3] = a + b, a - b, c + d, c - d
        weights[i + 4], weights[i + 5], weights[i + 6], weights[i + 7] = e + f, e - f, g + h, g - h


@compile_once
def _decode(codes, starts, values, factor, sign, block, out):  # type: ignore[no-untyped-def]
    last, mask, columns = len(codes) - 1, np.uint32(len(values) - 1), out.shape[1]
    for row in range(len(starts)):
        first, shift = starts[row] >> 3, np.uint32(starts[row] & 7)
        low, middle, high = codes[first], codes[min(first + 1, last)], codes[min(first + 2, last)]
        weights = out[row]
        for i in range(columns):
            word = (
                np.uint32(low[i]) | np.uint32(middle[i]) << np.uint32(8) | np.uint32(high[i]) << np.uint32(16)
            )
            weights[i] = values[np.uint32(np.uint32(word >> shift) & mask)]
        _apply_hadamard(weights, block)
        for i in range(columns):
            weights[i] *= factor[row] * sign[i]


@compile_once
def rotate(rows, sign, factor, block):  # type: ignore[no-untyped-def]
    """Rows float32 (n, in), contiguous, times the signs (in,), the Hadamard matrix of each block, and a factor."""
    for row in range(len(rows)):
        weights = rows[row]
        for i in range(len(weights)):
            weights[i] *= factor * sign[i]
        _apply_hadamard(weights, block)
