"""hqq's packed codes to weights by one kernel, rounded after each operation as the library's are."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WEIGHTS = 1024
"""Weights that a program decodes."""


def decode(codes: Tensor, meta: dict[str, Any]) -> Tensor:
    """The weight (out, in) in the dtype that the layer computes in."""
    weight = torch.empty(meta["shape"], dtype=meta["compute_dtype"], device=codes.device)
    _decode[(triton.cdiv(weight.numel(), WEIGHTS),)](
        codes,
        meta["scale"],
        meta["zero"],
        weight,
        weight.numel(),
        len(codes),
        BITS=meta["nbits"],
        PARTS=10 if meta["nbits"] == 3 else 8 // meta["nbits"],
        SIZE=codes.shape[1],
        WEIGHTS=WEIGHTS,
    )
    return weight


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    codes,
    scale,
    zero,
    weight,
    count,
    rows,
    BITS: tl.constexpr,
    PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * WEIGHTS + tl.arange(0, WEIGHTS)
    real = n < count
    group = (
        n // SIZE
    )  # groups whose numbers are a multiple of `rows` apart lie in one word, the first in its highest bits
    word = tl.load(codes + (group % rows) * SIZE + n % SIZE, mask=real, other=0).to(tl.int32)
    shift = (BITS * (PARTS - 1 - group // rows)).to(tl.int32)
    code = ((word >> shift) & ((1 << BITS) - 1)).to(weight.dtype.element_ty)
    less = code.to(tl.float32) - tl.load(zero + group, mask=real, other=0).to(tl.float32)
    found = less.to(weight.dtype.element_ty).to(tl.float32) * tl.load(scale + group, mask=real, other=0).to(
        tl.float32
    )
    tl.store(weight + n, found.to(weight.dtype.element_ty), mask=real)
