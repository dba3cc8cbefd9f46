"""Decoding in the plain way, by torch's operations, on any device."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from qra_backends.reference.blocks import rows_at_once
from qra_backends.trellis.code import TrellisCode, values
from qra_backends.trellis.rotation import hadamard, signs


def decode_rows(codes: Tensor, factor: Tensor, at: Tensor, code: TrellisCode, block: int, dtype: torch.dtype) -> Tensor:
    """Rows (n, in) of a weight.

    Args:
        factor: float32 (n,), the scale of each row over that of whole numbers.
    """
    in_features = codes.shape[1]
    weight = torch.empty(len(at), in_features, dtype=dtype, device=codes.device)
    sign, step = signs(in_features, codes.device), rows_at_once(in_features, codes.device)
    for start in range(0, len(at), step):
        own = slice(start, start + step)
        whole = hadamard(state_values(codes, at[own], code).float(), block)
        torch.mul(whole.mul_(factor[own, None]), sign, out=weight[own])
    return weight


def state_values(codes: Tensor, at: Tensor, code: TrellisCode) -> Tensor:
    """Values int16 (n, in), in `UNIT`s, of rows `at` (n,) of the rotated weight, yet without a scale."""
    start, last = code.starts(at), len(codes) - 1
    first = start >> 3
    word = codes[first].to(torch.int32)
    for later in (1, 2):  # 7 + 16 bits at most; the bytes that a short stream lacks would be masked
        word.add_(codes[(first + later).clamp_max_(last)], alpha=256**later)
    state = word.bitwise_right_shift_((start & 7)[:, None]).bitwise_and_(2**code.L - 1)
    return value_table(code.L, codes.device)[state]


@lru_cache
def value_table(L: int, device: torch.device) -> Tensor:
    """`code.values` on a device."""
    return torch.from_numpy(values(L)).to(device)
