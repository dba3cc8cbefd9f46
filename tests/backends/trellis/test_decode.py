"""All ways to decode give the same numbers: torch's operations, numba, and the kernel in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from qra_backends.trellis.code import UNIT, TrellisCode, make_state_values
from qra_backends.trellis.decode_numba import decode_rows
from qra_backends.trellis.encode import rotate_rows
from qra_backends.trellis.linear import decode, decode_values
from qra_backends.trellis.linear import decode_rows as decode_plainly
from qra_backends.trellis.rotation import apply_hadamard, choose_block, make_signs, rotate_by_torch
from torch import Tensor

SHAPES = ((40, 256), (7, 64), (33, 9), (3, 2048), (40, 100), (1, 1))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cases() -> Iterator[tuple[Tensor, Tensor, Tensor, TrellisCode, int]]:
    """Streams of chance, scales, rows asked for, the code and the block: every rate and odd shape."""
    g = torch.Generator().manual_seed(0)
    for half in range(2, 11):
        code, largest = (TrellisCode(half, 16), 1024) if half % 3 == 0 else (TrellisCode(half, 12), 256)
        for rows, columns in SHAPES:
            codes = torch.randint(0, 256, (code.stream_bytes(rows), columns), dtype=torch.uint8, generator=g)
            at = torch.tensor([rows - 1, *range(rows), rows // 2])
            yield codes, torch.rand(len(at), generator=g) * 1e-3, at, code, choose_block(columns, largest)


def test_numba_decodes_to_the_bit_what_torch_does():
    for case in cases():
        for dtype in DTYPES:
            assert torch.equal(decode_rows(*case, dtype), decode_plainly(*case, dtype)), (case[2:], dtype)


def test_the_weight_is_that_of_the_rotation_written_out():
    for codes, factor, at, code, block in cases():
        if code.half_bits > 4:  # the rate has no part in it
            continue
        turn = torch.block_diag(
            *[apply_hadamard(torch.eye(block), block) / math.sqrt(block)] * (codes.shape[1] // block)
        )
        turn = turn.double() * make_signs(codes.shape[1], codes.device)  # V
        assert torch.allclose(turn @ turn.T, torch.eye(len(turn)).double(), atol=1e-6)
        expected = decode_values(codes, at, code).double() @ turn * (factor * math.sqrt(block))[:, None]
        assert torch.allclose(
            decode_plainly(codes, factor, at, code, block, torch.float32).double(), expected
        )


def test_sums_are_exact_up_to_the_largest_block():
    assert int(abs(make_state_values(16).astype(int)).max()) * 1024 < 2**24
    assert UNIT == 1 / 2048


def test_rotating_leaves_products_as_they_are():
    g = torch.Generator().manual_seed(1)
    weight, x = torch.randn(5, 96, generator=g), torch.randn(7, 96, generator=g)
    assert choose_block(96, 256) == 32 and choose_block(96, 16) == 16 and choose_block(9, 256) == 1
    assert torch.allclose(rotate_by_torch(x, 32) @ rotate_by_torch(weight, 32).T, x @ weight.T, atol=1e-4)
    spike = torch.zeros(1, 96)
    spike[0, 40] = 1
    assert rotate_by_torch(spike, 32).abs().max() == pytest.approx(32**-0.5)


TURNED = [((5, 96), 32), ((33, 9), 1), ((7, 40), 4), ((3, 2048), 1024), ((0, 64), 64)]


@pytest.mark.parametrize(("shape", "block"), TURNED)
def test_compiled_rotations_are_those_of_torch(shape: tuple[int, int], block: int):
    rows = torch.randn(shape[::-1], generator=torch.Generator().manual_seed(2)).T
    kept = rows.clone()
    assert torch.allclose(rotate_rows(rows, block), rotate_by_torch(rows, block), atol=1e-5) and torch.equal(
        rows, kept
    )


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("half", [2, 3, 4, 5, 7, 10])
def test_the_kernel_gives_the_same_in_tritons_interpreter(half: int, kernels: Callable[[bool], None]):
    for codes, factor, at, code, block in cases():
        if code.half_bits != half or len(at) * codes.shape[1] > 5000:
            continue
        scale = torch.zeros(int(at.max()) + 1, dtype=torch.float16)
        scale[at] = (1000 * factor).half()
        for rows in (at, None):
            for dtype in DTYPES[:2]:  # the interpreter rounds bfloat16 towards zero
                kernels(False)
                plain = decode(codes, scale, rows, code, block, dtype)
                kernels(True)
                assert torch.equal(decode(codes, scale, rows, code, block, dtype), plain)
