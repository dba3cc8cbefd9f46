"""Packed codes take exactly their bits, and come back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qra_backends.reference import bitpack


@given(st.sampled_from(bitpack.WIDTHS), st.integers(1, 200), st.integers(0, 2**31))
def test_codes_come_back_and_take_exactly_their_bits(bits: int, count: int, seed: int):
    codes = torch.randint(
        0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    packed = bitpack.pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count * bits // 8)
    assert torch.equal(bitpack.unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", bitpack.WIDTHS)
def test_the_stream_is_little_endian_bits(bits: int):
    codes = torch.randint(0, 2**bits, (37,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert bytes(bitpack.pack(codes, bits).tolist()) == number.to_bytes(-(-37 * bits // 8), "little")
