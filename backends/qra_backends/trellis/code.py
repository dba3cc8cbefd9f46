"""The code: where a weight's state lies in its column's stream of bits, the value that a state stands for, and the
rotation of a layer's inputs that makes weights Gaussian.

A column of a weight (out, in) is a sequence of `out` states of L bits each. The state of row t is the L bits of the
column's stream from bit floor(K t) on, so neighbours share all but about K of them, and any row can be read by itself.
K may be a whole number and a half: rows then take K - 1/2 and K + 1/2 new bits in turn.

The rotation is random signs, then Hadamard matrices along blocks. With V x = H (s ∘ x) a layer's output is
W x = (W Vᵀ) (V x), and W Vᵀ is what is coded. Values that stand out are spread over their block (QuIP#, arXiv
2402.04396).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from qra_backends.storage import ceil_div

VALUE_UNIT = 2.0**-11
"""Values are whole numbers of it: sums of up to 1024 of them are exact in float32, in whichever order they are made."""


@dataclass(frozen=True)
class TrellisCode:
    """A rate and a length of states.

    Attributes:
        half_bits: bits a weight, times two: 5 are 2.5 bits.
        L: bits of a state.
    """

    half_bits: int
    L: int

    def stream_bytes(self, out_features: int) -> int:
        """Bytes of one column's stream; the last may have bits to spare."""
        return ceil_div(self.locate_state(out_features - 1) + self.L, 8)

    def locate_state(self, row: Any) -> Any:
        """The first bit of a row's state; of the states of rows int64 (n,)."""
        return row * self.half_bits >> 1

    def get_state_shifts(self) -> tuple[int, int]:
        """How far the state moves on after an even row, and after an odd one."""
        return self.half_bits // 2, self.half_bits - self.half_bits // 2


def count_word_rows(code: TrellisCode) -> int:
    """Rows whose states a word of 32 bits holds that begins with the byte of the first one's: 1, 2 or 4."""
    return max(n for n in (1, 2, 4) if 7 + ceil_div((n - 1) * code.half_bits, 2) + code.L <= 32)


def pack(states: Tensor, code: TrellisCode) -> Tensor:
    """Streams uint8 (bytes, n) of columns whose states are int32 (out, n), each following from the one before.

    A byte is covered by the last state that begins at its first bit or before, and the next.
    """
    rows = len(states)
    first = 8 * torch.arange(code.stream_bytes(rows), device=states.device)
    at = ((2 * first + 1) // code.half_bits).clamp_max_(rows - 1)
    following = (at + 1).clamp_max_(rows - 1)
    low = states[at] >> (first - code.locate_state(at))[:, None]
    # Negative only where the last state follows itself.
    ahead = (code.locate_state(following) - first)[:, None]
    high = (states[following] << ahead.clamp_min(0)) >> (-ahead).clamp_min(0)
    return (low | high).to(torch.uint8)


@lru_cache
def make_state_values(L: int) -> NDArray[np.int16]:
    """Values of all states (2^L,), in `VALUE_UNIT`s: the quantiles of a normal distribution of variance 1, well mixed.

    They are part of what is stored: the same for ever, everywhere.
    """
    quantiles = ndtri((np.arange(2**L) + 0.5) / 2**L)
    whole = np.rint(quantiles / quantiles.std() / VALUE_UNIT).astype(np.int16)
    return whole[np.argsort(hash_integers(2**L), kind="stable")]


@lru_cache
def make_value_table(L: int, device: torch.device) -> Tensor:
    """`make_state_values` on a device."""
    return torch.from_numpy(make_state_values(L)).to(device)


def hash_integers(count: int) -> NDArray[np.uint64]:
    """Well-mixed numbers (count,): the outputs of SplitMix64 (Steele, Lea and Flood 2014) for 1, 2, 3, ..."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


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
