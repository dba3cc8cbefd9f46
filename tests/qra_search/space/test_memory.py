"""Bytes are exact and additive; sizes are read and written as people do."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import make_space
from hypothesis import given
from hypothesis import strategies as st

from qra_search import GroupwiseFormat
from qra_search.space.memory import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("bits", "shape", "expected"),
    [
        (3, (192, 576), 110592 * 3 // 8 + 192 * 9 * 4),  # 9 groups of 64 a row, 4 bytes of metadata each
        (4, (2, 65), 2 * 65 * 4 // 8 + 2 * 2 * 4),  # a last group that is short still has its metadata
    ],
)
def test_a_matrix_takes_its_bits_and_four_bytes_a_group(bits, shape, expected):
    assert GroupwiseFormat(bits).bytes(*shape) == expected


@given(st.integers(0, 2**32 - 1))
def test_bytes_of_a_plan_are_the_sum_of_its_linears(seed):
    space = make_space(fixed_bytes=1000)
    rng = np.random.default_rng(seed)
    plan = space.decode(np.stack([rng.integers(0, 4, 6), rng.integers(0, 3, 6)]))
    expected = 1000
    for group, bits, rank in zip(space.groups, plan.bits, plan.ranks, strict=True):
        for m in group.linears:
            expected += m.weights * bits // 8 + m.out_features * -(-m.in_features // 64) * 4
            expected += 2 * rank * (m.in_features + m.out_features)
    assert space.memory_bytes(plan) == expected


def test_minimum_and_maximum_are_those_of_the_smallest_and_largest_plan(space):
    assert space.memory.minimum == space.memory_bytes(space.uniform(2, 4))
    assert space.memory.maximum == space.memory_bytes(space.uniform(8, 16))


def test_sixteen_bits_carry_no_metadata():
    space = make_space(groups=1, bits=(16,), ranks=(0,))
    assert space.memory.minimum == 256 * 512 * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("108MiB", 108 * 2**20),
        ("6 GiB", 6 * 2**30),
        ("90MB", 90_000_000),
        ("1.5kb", 1500),
        ("77", 77),
        (12, 12),
    ],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "MiB", "12XB", "-3MiB", "0", "1e9999", "nan", "6GiBs", "6GiB or so", True]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="size in bytes"):
        parse_bytes(text)


def test_sizes_are_written():
    assert [format_bytes(x) for x in (12, 2048, 108 * 2**20, 6 * 2**30)] == [
        "12 B",
        "2.0 KiB",
        "108.0 MiB",
        "6.0 GiB",
    ]
