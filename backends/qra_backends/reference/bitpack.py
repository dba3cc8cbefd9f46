"""Codes of 2 to 6 or 8 bits packed into bytes without a gap, and unpacked.

The codes form one little-endian stream of bits: code i lies in bits [i·b, (i+1)·b). n codes take ceil(n·b/8) bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from qra_backends.storage import ceil_div

WIDTHS = (2, 3, 4, 5, 6, 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Packed bytes, uint8 (ceil(n·bits/8),), of uint8 codes of any shape with n elements, each below 2^bits."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.clone()
    eights = F.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    wide = torch.int32 if bits <= 4 else torch.int64
    word = torch.zeros(len(eights), dtype=wide, device=flat.device)
    for i in range(8):  # eight codes fill `bits` whole bytes; of 4 bits, also the one of the sign
        word |= eights[:, i].to(wide) << (bits * i)
    stream = torch.empty(len(word), bits, dtype=torch.uint8, device=flat.device)
    for i in range(bits):
        stream[:, i] = (word >> (8 * i)) & 0xFF
    return stream.view(-1)[: ceil_div(codes.numel() * bits, 8)].clone()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` codes, uint8 (count,), of bytes made by `pack`."""
    if bits == 8:
        return packed[:count]
    if bits == 4:
        word = packed.to(torch.int16)  # ba -> 0b0a
        return word.bitwise_or_(word << 4).bitwise_and_(0x0F0F).view(torch.uint8)[:count]
    if bits == 2:
        # dcba -> 00dc00ba -> 0d0c0b0a; the copies that a factor adds do not overlap.
        word = packed.to(torch.int32)
        word = word.mul_(0x1001).bitwise_and_(0x000F000F).mul_(0x41).bitwise_and_(0x03030303)
        return word.view(torch.uint8)[:count]
    # Eight codes fill whole bytes, and each lies within two.
    stream = F.pad(packed, (0, -len(packed) % bits)).view(-1, bits).to(torch.int16)
    codes = torch.empty(len(stream), 8, dtype=torch.uint8, device=packed.device)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = stream[:, byte] >> shift
        if shift + bits > 8:
            code.add_(stream[:, byte + 1], alpha=2 ** (8 - shift))  # their bits do not overlap
        torch.bitwise_and(code, 2**bits - 1, out=codes[:, i])
    return codes.view(-1)[:count]
