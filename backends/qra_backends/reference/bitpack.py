"""Codes of 2, 3, 4 or 8 bits packed into bytes without a gap, and unpacked quickly.

The codes form one little-endian stream of bits: code i lies in bits [i·b, (i+1)·b). n codes take ceil(n·b/8) bytes.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from qra_backends.storage import ceil_div

WIDTHS = (2, 3, 4, 8)
_VALUES_PER_LOOKUP = {2: 4, 3: 4, 4: 2}  # 8, 12 and 8 bits: tables of 256, 4096 and 256 rows


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packed bytes, uint8 (ceil(n·bits/8),), of uint8 codes of any shape with n elements, each below 2^bits."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.clone()
    flat = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8).to(torch.int32)
    word = torch.zeros(len(flat), dtype=torch.int32, device=flat.device)
    for i in range(8):  # eight codes fill `bits` whole bytes; 4 bits fill all 32, where the sign bit is only a bit
        word |= flat[:, i] << (bits * i)
    stream = torch.stack([(word >> (8 * i)) & 0xFF for i in range(bits)], dim=1)
    return stream.to(torch.uint8).reshape(-1)[: ceil_div(codes.numel() * bits, 8)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes, uint8 (count,), of bytes made by `pack`."""
    if bits == 8:
        return packed[:count]
    if bits == 3:
        triples = F.pad(packed, (0, -len(packed) % 3)).view(-1, 3).to(torch.int32)
        low, middle, high = triples.unbind(1)
        index = torch.stack([low | ((middle & 0xF) << 8), (middle >> 4) | (high << 4)], dim=1).view(-1)
    else:
        index = packed.to(torch.int32)
    return _table(bits, packed.device).index_select(0, index).view(torch.uint8)[:count]


@lru_cache(maxsize=16)
def _table(bits: int, device: torch.device) -> Tensor:
    """The codes in every pattern of bits, a row's bytes seen as one integer so that a lookup moves them at once."""
    values = _VALUES_PER_LOOKUP[bits]
    patterns = torch.arange(1 << (bits * values), dtype=torch.int32)
    codes = torch.stack([(patterns >> (bits * i)) & ((1 << bits) - 1) for i in range(values)], dim=1)
    return codes.to(torch.uint8).view({4: torch.int32, 2: torch.int16}[values]).reshape(-1).to(device)
