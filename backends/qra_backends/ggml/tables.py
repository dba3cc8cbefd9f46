"""What both ways to decode look up: the tables of the package gguf, shifts of fields, and numbers of 16 bits."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def read_float16(blocks: Tensor, at: int = 0) -> Tensor:
    """The float16 at byte `at` of every block, as float32 (n, 1)."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)


@lru_cache(maxsize=32)
def load_vectors(name: str, device: torch.device) -> Tensor:
    """The codebook of a type, float32 (vectors, 8) at 2 bits and (vectors, 4) at 3."""
    from gguf import quants

    kind = getattr(quants, name)
    kind.init_grid()
    return torch.from_numpy(kind.grid.reshape(kind.grid_shape).copy()).to(device)


@lru_cache(maxsize=8)
def make_sign_table(device: torch.device) -> Tensor:
    """Signs of eight weights by their index of seven bits, uint8 (128,)."""
    from gguf.quants import IQ2_XXS

    return torch.frombuffer(bytearray(IQ2_XXS.ksigns), dtype=torch.uint8).to(device)


@lru_cache(maxsize=8)
def load_iq4_values(device: torch.device) -> Tensor:
    """The 16 values of IQ4_NL and IQ4_XS, float32."""
    from gguf.quants import IQ4_NL

    return torch.tensor(IQ4_NL.kvalues, dtype=torch.float32, device=device)


@lru_cache(maxsize=32)
def make_shifts(bits: int, device: torch.device) -> Tensor:
    """How far each field of so many bits lies from a byte's lowest bit, uint8 (8 / bits,)."""
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)
