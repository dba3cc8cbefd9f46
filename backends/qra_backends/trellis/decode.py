"""Codes to weights, all or some of the rows: in the plain way, compiled for a CPU, or by one kernel on a GPU.

All ways give the same numbers, bit for bit. A state's value is a whole number, and so are the sums that turn the inputs
back, which float32 holds exactly. Each is multiplied once by its row's scale, and rounded once to the dtype asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from qra_backends.base import missing_library
from qra_backends.reference.blocks import rows_at_once
from qra_backends.trellis.code import UNIT, TrellisCode, values
from qra_backends.trellis.rotation import hadamard, signs

Way = Callable[[Tensor, Tensor, Tensor, TrellisCode, int, torch.dtype], Tensor]


def decode(
    codes: Tensor, scale: Tensor, at: Tensor | None, code: TrellisCode, block: int, dtype: torch.dtype
) -> Tensor:
    """Rows (n, in) of a weight (out, in), in the quickest way there is on its device.

    Args:
        codes: uint8 (bytes of a stream, in).
        scale: float16 (out,).
        at: int64 (n,), indices of rows; None for all.
        block: inputs that were rotated together.
    """
    if at is None:
        at = torch.arange(len(scale), device=codes.device)
    factor = scale[at].float() * (UNIT / math.sqrt(block))
    return quickest(codes.device.type)(codes, factor, at, code, block, dtype)


@lru_cache
def quickest(device: str) -> Way:
    """What decodes on devices of a type. Its compiler is imported when a weight is first decoded, not before."""
    if device == "cpu":
        from qra_backends.trellis.decode_numba import decode_rows

        return decode_rows
    if device == "cuda" and missing_library("triton") is None:
        from qra_backends.trellis.decode_triton import decode_rows

        return decode_rows
    return decode_plainly


def decode_plainly(
    codes: Tensor, factor: Tensor, at: Tensor, code: TrellisCode, block: int, dtype: torch.dtype
) -> Tensor:
    """Rows (n, in) by torch's operations.

    Args:
        factor: float32 (n,), the scale of each row over that of whole numbers.
    """
    in_features = codes.shape[1]
    weight = torch.empty(len(at), in_features, dtype=dtype, device=codes.device)
    sign, step = signs(in_features, codes.device), rows_at_once(in_features, codes.device)
    for start in range(0, len(at), step):
        own = slice(start, start + step)
        whole = hadamard(state_values(codes, at[own], code).float(), block)
        weight[own] = whole.mul_(factor[own, None]).mul_(sign)
    return weight


def state_values(codes: Tensor, at: Tensor, code: TrellisCode) -> Tensor:
    """Values int16 (n, in), in `UNIT`s, of rows `at` (n,) of the rotated weight, yet without a scale."""
    start, last = code.starts(at), len(codes) - 1
    first = start >> 3
    word = codes[first].to(torch.int32)
    for later in (1, 2):  # 7 + 16 bits at most; the bytes that a short stream lacks would be masked
        word |= codes[(first + later).clamp_max_(last)].to(torch.int32) << (8 * later)
    state = (word >> (start & 7).to(torch.int32)[:, None]) & (2**code.L - 1)
    return value_table(code.L, codes.device)[state]


@lru_cache
def value_table(L: int, device: torch.device) -> Tensor:
    """`code.values` on a device."""
    return torch.from_numpy(values(L)).to(device)
