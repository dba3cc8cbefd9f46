"""The rotation of a layer's inputs that makes weights Gaussian: random signs, then Hadamard matrices along blocks.

With V x = H (s ∘ x) a layer's output is W x = (W Vᵀ) (V x), and W Vᵀ is what is coded. Values that stand out are spread
over their block (QuIP#, arXiv 2402.04396).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from qra_backends.trellis.code import hash_integers


def choose_block(in_features: int, largest: int) -> int:
    """Inputs that are rotated together: the largest power of two up to `largest` that divides their number."""
    return min(in_features & -in_features, largest)


@lru_cache
def make_signs(in_features: int, device: torch.device) -> Tensor:
    """1 or -1 for each input (in,), float32; the same for ever, as weights are stored under them."""
    return torch.from_numpy(1 - 2 * (hash_integers(in_features) >> 63).astype("float32")).to(device)


def rotate_by_torch(rows: Tensor, block: int) -> Tensor:
    """Rows (..., in) times Vᵀ, of a weight or of inputs, float32; a new tensor."""
    return apply_hadamard(rows * make_signs(rows.shape[-1], rows.device), block).mul_(1 / math.sqrt(block))


@lru_cache
def _make_butterfly(device: torch.device) -> Tensor:
    return torch.tensor([[1.0], [-1.0]], dtype=torch.float32, device=device)


def apply_hadamard(rows: Tensor, block: int) -> Tensor:
    """Rows (..., in) times the Hadamard matrix of each block, of entries 1 and -1: log2(block) sums a number."""
    size, sign = 1, _make_butterfly(rows.device)
    while size < block:
        low, high = rows.unflatten(-1, (-1, 2, size)).split(1, dim=-2)
        rows = torch.addcmul(low, high, sign).flatten(-3)  # both in one launch
        size *= 2
    return rows
