"""Ranges of groups, spanned or of least squared error; packed codes take exactly their bits, and come back."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from qra_backends.reference import groupwise
from torch import Tensor


def error(weight: Tensor, bits: int, group: int, importance: Tensor | None = None, **options) -> float:
    scale, offset = groupwise.fit_groups(weight, bits, group, importance=importance, **options)
    codes = groupwise.encode(weight, scale, offset, bits, group)
    squared = (groupwise.decode(codes, scale, offset, group, torch.float32) - weight).square()
    return float((squared if importance is None else squared * importance).sum())


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ranges", groupwise.RANGE_METHODS)
def test_levels_on_a_grid_are_coded_without_error(ranges: str):
    levels = torch.tensor([-0.5, 0.25, 1.0, 1.75]).repeat(3, 4)  # four levels, exact in 16 bits
    assert error(levels, 2, 4, ranges=ranges) == 0


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_least_error_is_below_spanning(bits: int):
    weight = gaussian(64, 128)
    assert error(weight, bits, 64, ranges="mse") < 0.95 * error(weight, bits, 64)


def test_least_error_at_two_bits_is_near_the_best_of_a_fine_grid():
    weight = gaussian(1, 16)
    low, high = float(weight.min()), float(weight.max())
    ends = torch.linspace(low, high, 120).tolist()
    best = min(
        float((((weight - a) / ((b - a) / 3)).round().clamp(0, 3) * (b - a) / 3 + a - weight).square().sum())
        for a, b in itertools.combinations(ends, 2)
    )
    assert error(weight, 2, 16, ranges="mse") <= 1.1 * best


def test_importance_moves_the_error_to_columns_that_matter_less():
    weight, importance = gaussian(32, 64), torch.ones(64)
    importance[:8] = 100
    assert error(weight, 2, 64, importance, ranges="mse") < 0.7 * float(
        ((decode_mse(weight) - weight).square() * importance).sum()
    )


def decode_mse(weight: Tensor) -> Tensor:
    scale, offset = groupwise.fit_groups(weight, 2, 64, ranges="mse")
    return groupwise.decode(groupwise.encode(weight, scale, offset, 2, 64), scale, offset, 64, torch.float32)


@pytest.mark.parametrize("ranges", groupwise.RANGE_METHODS)
@pytest.mark.parametrize("size", [1e-5, 1e-6, 3e-7])
def test_weights_whose_scale_is_below_float16_are_not_lost(ranges: str, size: float):
    weight = size * gaussian(8, 256)
    assert error(weight, 8, 64, ranges=ranges) < 0.01 * float(weight.square().sum())


@given(st.sampled_from(groupwise.WIDTHS), st.integers(1, 200), st.integers(0, 2**31))
def test_codes_come_back_and_take_exactly_their_bits(bits: int, count: int, seed: int):
    codes = torch.randint(
        0, 2**bits, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    packed = groupwise.pack(codes, bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count * bits // 8)
    assert torch.equal(groupwise.unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", groupwise.WIDTHS)
def test_the_stream_is_little_endian_bits(bits: int):
    codes = torch.randint(0, 2**bits, (37,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert bytes(groupwise.pack(codes, bits).tolist()) == number.to_bytes(-(-37 * bits // 8), "little")
