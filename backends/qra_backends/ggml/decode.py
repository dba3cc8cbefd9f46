"""Weights from blocks, in torch on any device: the very numbers that llama.cpp's own decoder gives.

A weight is scale · value + offset. All products are exact in float32 (a scale has at most 19 significant bits, a value
no more than what is left), so only the sum is rounded, as it is in llama.cpp; the order of operations does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qra_backends import kernels
from qra_backends.ggml.types import GGMLType, Plane, load_iq4_values, make_shifts, read_float16
from qra_backends.storage import choose_block_rows


def decode(blocks: Tensor, kind: GGMLType, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) in `dtype`, from uint8 (out, bytes of a row); computed in float32 and rounded once."""
    if kernels.are_kernels_usable(blocks.device):
        from qra_backends.ggml.decode_triton import decode as decode_at_once

        return decode_at_once(blocks.contiguous(), kind, dtype)
    from gguf import GGMLQuantizationType, dequantize

    rows, row_bytes = blocks.shape
    columns = row_bytes // kind.block_bytes * kind.block
    weight = torch.empty(rows, columns, dtype=dtype, device=blocks.device)
    at_once = choose_block_rows(columns, blocks.device)
    for start in range(0, rows, at_once):
        some = blocks[start : start + at_once].reshape(-1, kind.block_bytes)
        if not kind.planes:  # vectors of a codebook
            decoded = torch.from_numpy(dequantize(some.cpu().numpy(), GGMLQuantizationType[kind.name]))
            weight[start : start + at_once] = decoded.view(-1, columns)
            continue
        scale, offset = read_scales(some, kind)
        codes = read_codes(some, kind)
        values = codes.float().sub_(kind.zero)
        if not kind.even:
            values = load_iq4_values(some.device)[codes.long()]
        grouped = values.view(len(values), scale.shape[1], -1).mul_(scale[..., None])
        if offset is not None:
            grouped.add_(offset[..., None])
        weight[start : start + at_once] = grouped.view(-1, columns)
    return weight


def read_codes(blocks: Tensor, kind: GGMLType) -> Tensor:
    """Codes uint8 (n, block)."""
    codes: Tensor | None = None
    for plane in kind.planes:
        part = _read_fields(blocks[:, plane.start : plane.stop], plane)
        codes = part if codes is None else codes | (part << plane.at)
    assert codes is not None, f"{kind.name} has no codes"
    return codes ^ kind.flip if kind.flip else codes


def replace_codes(blocks: Tensor, kind: GGMLType, codes: Tensor) -> Tensor:
    """The blocks with other codes, uint8 (n, block); scales stay. A new tensor."""
    made = blocks.clone()
    codes = codes ^ kind.flip if kind.flip else codes
    for plane in kind.planes:
        part = (codes >> plane.at) & (2**plane.bits - 1)
        part = part.view(len(blocks), -1, 8 // plane.bits, plane.chunk)
        part = part << make_shifts(plane.bits, blocks.device)[:, None]
        made[:, plane.start : plane.stop] = part.sum(2, dtype=torch.uint8).view(len(blocks), -1)
    return made


def read_scales(blocks: Tensor, kind: GGMLType) -> tuple[Tensor, Tensor | None]:
    """Scale, and offset if the type has one, of every group: float32 (n, groups)."""
    whole = read_float16(blocks, kind.scale_at)
    least = read_float16(blocks, kind.scale_at + 2) if kind.offset else None
    if kind.block == 32:
        return whole, least
    if kind.name == "Q2_K":
        assert least is not None
        both = blocks[:, :16]
        return whole * (both & 0xF), -(least * (both >> 4))
    if kind.name in ("Q4_K", "Q5_K"):
        assert least is not None
        scale, lowest = _unpack_six_bits(blocks[:, 4:16])
        return whole * scale, -(least * lowest)
    if kind.name == "Q3_K":
        packed = blocks[:, 96:108]
        low = _read_fields(packed[:, :8], Plane(0, 8, 8, 4))
        high = _read_fields(packed[:, 8:], Plane(0, 4, 4, 2))
        return whole * ((low | (high << 4)).float() - 32), None
    if kind.name == "Q6_K":
        return whole * blocks[:, 192:208].contiguous().view(torch.int8), None
    if kind.name == "IQ4_XS":
        low = _read_fields(blocks[:, 4:8], Plane(0, 4, 1, 4))
        high = _read_fields(blocks[:, 2:4], Plane(0, 2, 1, 2))
        return whole * ((low | (high << 4)).float() - 32), None
    raise ValueError(f"the scales of GGUF type {kind.name} cannot be trained: choose another type")


def replace_block_scales(blocks: Tensor, kind: GGMLType, scale: Tensor) -> Tensor:
    """New blocks (n, bytes) with other 16-bit scales, float32 (n, 1), and offsets in the same proportion."""
    made, before = blocks.clone(), read_float16(blocks, kind.scale_at)
    write_float16(made, kind.scale_at, scale)
    if kind.offset:
        ratio = torch.where(before == 0, 1.0, scale / torch.where(before == 0, 1.0, before))
        write_float16(made, kind.scale_at + 2, read_float16(blocks, kind.scale_at + 2) * ratio)
    return made


def write_float16(blocks: Tensor, at: int, values: Tensor) -> None:
    """Write numbers (n, 1) as the float16 at byte `at` of every block."""
    blocks[:, at : at + 2] = values.to(torch.float16).view(torch.uint8)


def _read_fields(packed: Tensor, plane: Plane) -> Tensor:
    """Fields of `plane.bits` bits, uint8 (n, weights), of the plane's bytes (n, bytes)."""
    if plane.bits == 8:
        return packed.contiguous()
    parts = packed.reshape(len(packed), -1, 1, plane.chunk) >> make_shifts(plane.bits, packed.device)[:, None]
    return parts.bitwise_and_(2**plane.bits - 1).view(len(packed), -1)


def _unpack_six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and eight minima of six bits each in 12 bytes (n, 12); uint8 (n, 8)."""
    first, second, rest = packed.split(4, dim=1)
    scale = torch.cat([first & 0x3F, (rest & 0xF) | ((first >> 2) & 0x30)], dim=1)
    least = torch.cat([second & 0x3F, (rest >> 4) | ((second >> 2) & 0x30)], dim=1)
    return scale, least
