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

from qra_backends.kernels import choice
from qra_backends.trellis import decode_torch
from qra_backends.trellis.code import UNIT, TrellisCode


def decode(
    codes: Tensor,
    scale: Tensor,
    at: Tensor | None,
    code: TrellisCode,
    block: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows (n, in) of a weight (out, in), in the quickest way there is on its device.

    Args:
        codes: uint8 (bytes of a stream, in).
        scale: float16 (out,).
        at: int64 (n,), indices of rows; None for all.
        block: inputs that were rotated together.
    """
    unit = UNIT / math.sqrt(block)
    if choice.is_usable(codes.device):
        from qra_backends.trellis.decode_triton import decode_rows

        return decode_rows(codes, scale, unit, at, code, block, dtype)
    scale = (scale if at is None else scale[at]).float() * unit
    if at is None:
        at = torch.arange(len(scale), device=codes.device)
    return portable_decoder(codes.device.type)(codes, scale, at, code, block, dtype)


@lru_cache
def portable_decoder(device: str) -> Callable[[Tensor, Tensor, Tensor, TrellisCode, int, torch.dtype], Tensor]:
    """What decodes without Triton. numba compiles when a weight is first decoded, not before."""
    if device == "cpu":
        from qra_backends.trellis.decode_numba import decode_rows

        return decode_rows
    return decode_torch.decode_rows
