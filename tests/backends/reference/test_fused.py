"""Weights from one compiled kernel are those of the steps, bit for bit; without a compiler the steps are taken."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from qra_backends import make_backend
from qra_backends.reference import fused
from qra_backends.reference.fused import Decode, Fused
from qra_backends.reference.packed import GROUP_DTYPE, PackedLinear
from torch import Tensor, nn

SHAPES = ((24, 128), (5, 192))


def packed(bits: int, shape: tuple[int, int]) -> PackedLinear:
    layer = make_backend("reference").quantize(nn.Linear(shape[1], shape[0], bias=False), bits)
    assert isinstance(layer, PackedLinear)
    return layer


def arguments(layer: PackedLinear) -> tuple[Tensor, Tensor, Tensor]:
    return layer.codes, layer.scale.view(GROUP_DTYPE), layer.offset.view(GROUP_DTYPE)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_as_written_gives_the_weights_of_the_steps(bits: int, dtype: torch.dtype):
    layer = packed(bits, SHAPES[0])
    codes, scale, offset = arguments(layer)
    found = Decode(bits, 64, dtype)(codes, scale.flatten(), offset.flatten())
    assert torch.equal(found.view(SHAPES[0]), layer.dequantize(dtype))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_compiled_kernel_gives_the_weights_of_the_steps_at_any_shape(bits: int):
    decode = Fused()
    for shape in SHAPES:
        layer = packed(bits, shape)
        found = decode(*arguments(layer), bits, 64, torch.bfloat16)
        assert found is not None and torch.equal(found.view(shape), layer.dequantize(torch.bfloat16))


def test_shapes_that_the_kernel_does_not_take_are_left_to_the_steps():
    for layer in (packed(4, (1, 64)), packed(4, (3, 100))):
        assert Fused()(*arguments(layer), 4, 64, torch.float32) is None


def test_a_missing_compiler_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    def no_compiler(*_: Tensor) -> Tensor:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(fused, "compiled", lambda *_: no_compiler)
    decode, layer = Fused(), packed(4, SHAPES[0])
    with caplog.at_level(logging.WARNING):
        assert [decode(*arguments(layer), 4, 64, torch.float32) for _ in range(3)] == [None] * 3
    assert len(caplog.records) == 1 and "no C++ compiler" in caplog.text


def test_memory_that_runs_out_is_no_missing_compiler(monkeypatch: pytest.MonkeyPatch):
    def full(*_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(fused, "compiled", lambda *_: full)
    decode = Fused()
    with pytest.raises(torch.OutOfMemoryError):
        decode(*arguments(packed(4, SHAPES[0])), 4, 64, torch.float32)
    assert not decode.failed
