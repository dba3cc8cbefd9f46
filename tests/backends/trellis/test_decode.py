"""All ways to decode give the same numbers: torch's operations, numba, and the kernel in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from qra_backends.trellis import decode_numba, linear
from qra_backends.trellis.code import (
    VALUE_UNIT,
    TrellisCode,
    apply_hadamard,
    choose_block,
    make_signs,
    make_state_values,
    rotate_by_torch,
)
from qra_backends.trellis.decode_numba import decode_rows
from qra_backends.trellis.encode import rotate_rows
from qra_backends.trellis.linear import TrellisLinear, decode, decode_values
from qra_backends.trellis.linear import decode_rows as decode_plainly
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


def make_layer(
    out_features: int, in_features: int, dtype: torch.dtype, bias: Tensor | None = None
) -> TrellisLinear:
    """A layer of 2 bits, its streams of chance."""
    code, block = TrellisCode(4, 12), choose_block(in_features, 256)
    codes = torch.randint(0, 256, (code.stream_bytes(out_features), in_features), dtype=torch.uint8)
    tensors = {"codes": codes, "scale": torch.ones(out_features, 1, dtype=torch.float16)}
    form = {"out_features": out_features, "in_features": in_features, "dtype": dtype}
    frozen = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)
    return TrellisLinear(tensors, code=code, block=block, bias=frozen, **form)


def test_numba_decodes_to_the_bit_what_torch_does():
    for case in cases():
        for dtype in DTYPES:
            assert torch.equal(decode_rows(*case, dtype), decode_plainly(*case, dtype)), (case[2:], dtype)


def test_the_weight_is_that_of_the_rotation_written_out():
    for codes, factor, at, code, block in cases():
        if code.half_bits > 2:  # the rate has no part in it
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
    assert VALUE_UNIT == 1 / 2048


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
@pytest.mark.parametrize("half", [2, 5, 10])
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


@pytest.mark.parametrize("compiled", ["numba", "triton"])
def test_products_with_few_inputs_are_those_of_the_decoded_weight_and_its_adapters(
    compiled: str, kernels: Callable[[bool], None]
):
    if compiled == "triton":
        pytest.importorskip("triton")
    kernels(compiled == "triton")
    g = torch.Generator().manual_seed(3)
    for codes, factor, at, code, block in cases():
        if compiled == "triton" and len(at) * codes.shape[1] > 1000:
            continue
        out_features, in_features = len(at) - 2, codes.shape[1]
        scale = (1000 * factor[:out_features, None]).half()
        form = {"out_features": out_features, "in_features": in_features, "dtype": torch.float32}
        bias = torch.nn.Parameter(torch.randn(out_features, generator=g), requires_grad=False)
        layer = TrellisLinear({"codes": codes, "scale": scale}, code=code, block=block, bias=bias, **form)
        a, b = torch.randn(5, in_features, generator=g), torch.randn(out_features, 5, generator=g)
        whole = layer.dequantize().double() + 2 * b.double() @ a.double()
        for inputs in (1, 2, 16) if compiled == "numba" else (3,):
            x = torch.randn(inputs, in_features, generator=g)
            found = layer.make_product([(a, b, 2.0)])(x).double() - bias
            assert (found - x.double() @ whole.T).norm() <= 1e-5 * whole.norm() * x.norm()
            with torch.no_grad():
                alone, exact = layer(x), torch.nn.functional.linear(x, layer.dequantize(), bias)
            assert (alone - exact).norm() <= 1e-5 * exact.norm()


def test_products_with_gradients_or_many_inputs_are_those_of_the_decoded_weight_to_the_bit():
    layer = make_layer(96, 64, torch.bfloat16)
    x = torch.randn(TrellisLinear.few_inputs + 1, 64).bfloat16()
    expected = torch.nn.functional.linear(x, layer.dequantize())
    few = layer(x[:2].requires_grad_())
    assert few.requires_grad
    assert torch.equal(few, torch.nn.functional.linear(x[:2], layer.dequantize()))
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


def test_a_prompt_decodes_a_block_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch):
    layer, sizes, x = make_layer(96, 64, torch.float32, torch.randn(96)), [], torch.randn(20, 64)
    expected = torch.nn.functional.linear(x, layer.dequantize(), layer.bias)
    monkeypatch.setattr(linear, "BLOCK_WEIGHTS", 64 * 10)
    monkeypatch.setattr(linear, "decode", lambda *a: sizes.append(len(a[2])) or decode(*a))
    with torch.no_grad():
        found = layer(x)
    assert sizes == [10] * 9 + [6]
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("inputs", [1, 5])
def test_products_on_three_threads_are_those_on_one_to_the_bit(inputs: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decode_numba, "MIN_THREAD_WEIGHTS", 1 << 10)
    shared, find_team = [], decode_numba._find_team

    def find_counted_team():
        team = find_team()
        return None if team is None else lambda job, parts: shared.append(parts) or team(job, parts)

    monkeypatch.setattr(decode_numba, "_find_team", find_counted_team)
    multiply = make_layer(601, 256, torch.float32).make_product()
    x, threads = torch.randn(inputs, 256), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = multiply(x)
        assert shared == [3], "torch on Linux has OpenMP"
        monkeypatch.setattr(decode_numba, "_PROCESS", -1)  # as in a child by fork
        assert torch.equal(multiply(x), together)
        torch.set_num_threads(1)
        assert torch.equal(multiply(x), together)
        assert shared == [3]
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux says what was resident")
@pytest.mark.parametrize("inputs", [1, 40])
def test_a_product_never_has_a_whole_weight_in_memory(inputs: int):
    out, columns = 8192, 4096
    layer = make_layer(out, columns, torch.bfloat16)

    def read_status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

    with torch.no_grad():
        layer(torch.randn(inputs, columns).bfloat16())  # compiles
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = read_status("VmRSS")
        layer(torch.randn(inputs, columns).bfloat16())
    assert read_status("VmHWM") - before < out * columns  # half of the weight in 16 bits
