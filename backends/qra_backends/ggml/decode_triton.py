"""Blocks to weights by one kernel a weight, for every type: what `decode.decode` gives, bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from qra_backends.ggml.types import GGMLType, Plane, load_iq4_values, load_vectors, make_sign_table

WEIGHTS_PER_PROGRAM = 1024
"""Weights that a program decodes."""


def decode(blocks: Tensor, kind: GGMLType, dtype: torch.dtype) -> Tensor:
    """The weight (out, in) from uint8 (out, bytes of a row)."""
    columns = blocks.shape[1] // kind.block_bytes * kind.block
    weight = torch.empty(len(blocks), columns, dtype=dtype, device=blocks.device)
    table, signs = blocks, blocks
    if not kind.planes:
        table, signs = load_vectors(kind.name, blocks.device), make_sign_table(blocks.device)
    elif not kind.even:
        table = load_iq4_values(blocks.device)
    low, high = (*kind.planes, Plane(0, 0, 1, 0), Plane(0, 0, 1, 0))[:2]
    _decode[(triton.cdiv(weight.numel(), WEIGHTS_PER_PROGRAM),)](
        blocks,
        table,
        signs,
        weight,
        weight.numel(),
        KIND=kind.name,
        BLOCK=kind.block,
        BYTES=kind.block_bytes,
        SCALE_AT=kind.scale_at,
        OFFSET=kind.offset,
        ZERO=kind.zero,
        FLIP=kind.flip,
        EVEN=kind.even,
        PLANES=len(kind.planes),
        START=low.start,
        CHUNK=low.chunk,
        BITS=low.bits,
        START_2=high.start,
        CHUNK_2=high.chunk,
        BITS_2=high.bits,
        AT_2=high.at,
        WEIGHTS_PER_PROGRAM=WEIGHTS_PER_PROGRAM,
    )
    return weight


@triton.jit
def _decode(  # type: ignore[no-untyped-def]
    blocks,
    table,
    signs,
    weight,
    count,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    BYTES: tl.constexpr,
    SCALE_AT: tl.constexpr,
    OFFSET: tl.constexpr,
    ZERO: tl.constexpr,
    FLIP: tl.constexpr,
    EVEN: tl.constexpr,
    PLANES: tl.constexpr,
    START: tl.constexpr,
    CHUNK: tl.constexpr,
    BITS: tl.constexpr,
    START_2: tl.constexpr,
    CHUNK_2: tl.constexpr,
    BITS_2: tl.constexpr,
    AT_2: tl.constexpr,
    WEIGHTS_PER_PROGRAM: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * WEIGHTS_PER_PROGRAM + tl.arange(0, WEIGHTS_PER_PROGRAM)
    real = n < count
    block, w = n // BLOCK, (n % BLOCK).to(tl.int32)
    here = blocks + block * BYTES
    whole = _load_half(here + SCALE_AT, real)
    if PLANES == 0:
        found = _load_vector(here, table, signs, w, whole, real, KIND)
    else:
        code = _load_field(here + START, w, real, CHUNK, BITS)
        if PLANES == 2:
            code |= _load_field(here + START_2, w, real, CHUNK_2, BITS_2) << AT_2
        if EVEN:  # noqa: SIM108 - a conditional expression in Triton takes one type
            value = ((code ^ FLIP) - ZERO).to(tl.float32)
        else:
            value = tl.load(table + code, mask=real, other=0)
        scale, least = whole, 0.0
        if OFFSET:
            least = _load_half(here + SCALE_AT + 2, real)
        if KIND == "Q2_K":
            both = _load_byte(here + w // 16, real)
            scale, least = whole * (both & 15).to(tl.float32), -(least * (both >> 4).to(tl.float32))
        elif KIND == "Q4_K" or KIND == "Q5_K":
            group = w // 32
            own, other = _load_byte(here + 4 + group % 4, real), _load_byte(here + 8 + group % 4, real)
            rest = _load_byte(here + 12 + group % 4, real)
            six = tl.where(group < 4, own & 63, (rest & 15) | ((own >> 2) & 48))
            lowest = tl.where(group < 4, other & 63, (rest >> 4) | ((other >> 2) & 48))
            scale, least = whole * six.to(tl.float32), -(least * lowest.to(tl.float32))
        elif KIND == "Q3_K":
            group = w // 16
            six = _load_field(here + 96, group, real, 8, 4) | (
                _load_field(here + 104, group, real, 4, 2) << 4
            )
            scale = whole * (six - 32).to(tl.float32)
        elif KIND == "Q6_K":
            scale = whole * ((_load_byte(here + 192 + w // 16, real) ^ 128) - 128).to(tl.float32)
        elif KIND == "IQ4_XS":
            group = w // 32
            six = _load_field(here + 4, group, real, 1, 4) | (_load_field(here + 2, group, real, 1, 2) << 4)
            scale = whole * (six - 32).to(tl.float32)
        found = value * scale + least
    tl.store(weight + n, found.to(weight.dtype.element_ty), mask=real)


@triton.jit
def _load_vector(here, table, signs, w, whole, real, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights of the types whose codes are vectors of a codebook: 8 numbers at 2 bits, 4 at 3 bits."""
    eight, group = w // 8, w // 32
    if KIND == "IQ2_XXS":
        code = _load_byte(here + 2 + 8 * group + eight % 4, real)
        word = _load_word(here + 6 + 8 * group, real)
        sign = tl.load(signs + ((word >> (7 * (eight % 4))) & 127), mask=real, other=0).to(tl.int32)
        scale = (0.5 + ((word >> 28) & 15).to(tl.float32)) * 0.25
    elif KIND == "IQ2_XS":
        both = _load_byte(here + 2 + 2 * eight, real) | (_load_byte(here + 3 + 2 * eight, real) << 8)
        code = both & 511
        sign = tl.load(signs + (both >> 9), mask=real, other=0).to(tl.int32)
        scale = (0.5 + _load_field(here + 66, w // 16, real, 1, 4).to(tl.float32)) * 0.25
    elif KIND == "IQ2_S":
        code = _load_byte(here + 2 + eight, real) | (_load_field(here + 66, eight, real, 1, 2) << 8)
        sign = _load_byte(here + 34 + eight, real)
        scale = (0.5 + _load_field(here + 74, w // 16, real, 1, 4).to(tl.float32)) * 0.25
    elif KIND == "IQ3_XXS":
        code = _load_byte(here + 2 + w // 4, real)
        word = _load_word(here + 66 + 4 * group, real)
        sign = tl.load(signs + ((word >> (7 * (eight % 4))) & 127), mask=real, other=0).to(tl.int32)
        scale = (0.5 + ((word >> 28) & 15).to(tl.float32)) * 0.5
    else:
        tl.static_assert(KIND == "IQ3_S")
        code = _load_byte(here + 2 + w // 4, real) | (_load_field(here + 66, w // 4, real, 1, 1) << 8)
        sign = _load_byte(here + 74 + eight, real)
        scale = 1 + 2 * _load_field(here + 106, group, real, 1, 4).to(tl.float32)
    LENGTH: tl.constexpr = 4 if KIND == "IQ3_XXS" or KIND == "IQ3_S" else 8
    value = tl.load(table + LENGTH * code + w % LENGTH, mask=real, other=0)
    return value * (1 - 2 * ((sign >> (w % 8)) & 1)).to(tl.float32) * (whole * scale)


@triton.jit
def _load_field(start, w, real, CHUNK: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The bits of number w in a plane (see `types.Plane`)."""
    FIELDS: tl.constexpr = 8 // BITS
    byte = _load_byte(start + w // (CHUNK * FIELDS) * CHUNK + w % CHUNK, real)
    return (byte >> (w // CHUNK % FIELDS * BITS)) & ((1 << BITS) - 1)


@triton.jit
def _load_byte(address, real):  # type: ignore[no-untyped-def]
    return tl.load(address, mask=real, other=0).to(tl.int32)


@triton.jit
def _load_word(address, real):  # type: ignore[no-untyped-def]
    """The four bytes from an address on, the highest bit as the sign."""
    low = _load_byte(address, real) | (_load_byte(address + 1, real) << 8)
    return low | (_load_byte(address + 2, real) << 16) | (_load_byte(address + 3, real) << 24)


@triton.jit
def _load_half(address, real):  # type: ignore[no-untyped-def]
    """The float16 at an address."""
    bits = _load_byte(address, real) | (_load_byte(address + 1, real) << 8)
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
