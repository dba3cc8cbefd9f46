"""GGUF's blocks of 32 weights, written from a layer's own codes where they fit, and otherwise by gguf's rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qra_eval.export.grids import Affine

BLOCK = 32
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Types that gguf's Python package writes and every llama.cpp reads."""


def own_blocks(own: Affine) -> tuple[np.ndarray, str] | None:
    """The bytes of a layer's own grid, and their type: Q4_1 for codes of up to 4 bits, Q8_0 for symmetric 8 bits.

    Q4_1 is d·q + m with float16 d and m for 32 weights, so it holds an evenly spaced grid with an offset as it is; only
    a scale that is not exact in float16 is rounded. None if neither type takes the grid.

    Returns:
        uint8 (out, bytes of a row).
    """
    out_features, in_features = own.codes.shape
    if own.group_size % BLOCK:
        return None
    repeat = own.group_size // BLOCK
    scale = own.scale.repeat_interleave(repeat, 1).to(torch.float16)
    offset = own.offset.repeat_interleave(repeat, 1).to(torch.float16)
    if not (torch.isfinite(scale).all() and torch.isfinite(offset).all()):
        return None
    codes = own.codes.view(out_features, -1, BLOCK)
    if int(own.codes.max()) < 16:
        halves = codes.view(out_features, -1, 2, BLOCK // 2)
        packed = halves[:, :, 0] | (halves[:, :, 1] << 4)
        return _join(scale, offset, packed), "Q4_1"
    if torch.equal(own.offset, -128 * own.scale):
        return _join(scale, (codes.to(torch.int16) - 128).to(torch.int8)), "Q8_0"
    return None


def rounded_blocks(weight: Tensor, kind: str) -> np.ndarray:
    """Bytes of a weight (out, in) in a type, by gguf's own rounding; floats for F32 and F16."""
    from gguf import GGMLQuantizationType, quantize

    return quantize(weight.float().numpy(), GGMLQuantizationType[kind])


def takes(kind: str, in_features: int) -> bool:
    """Whether rows of this length can be of a type."""
    if kind in ("F32", "F16", "BF16"):
        return True
    return in_features % (256 if "_K" in kind else BLOCK) == 0


def _join(*parts: Tensor) -> np.ndarray:
    rows, blocks = parts[0].shape[:2]
    as_bytes = [part.contiguous().view(torch.uint8).view(rows, blocks, -1) for part in parts]
    return torch.cat(as_bytes, dim=2).view(rows, -1).numpy()
