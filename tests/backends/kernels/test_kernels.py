"""Weights from our kernels, run by Triton's interpreter, are those of the plain way bit for bit, at every level."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from qra_backends import kernels as our_kernels
from qra_backends import make_backend
from qra_backends.ggml.decode import decode as decode_blocks
from qra_backends.ggml.decode import write_float16
from qra_backends.ggml.types import TYPES
from torch import Tensor, nn

pytest.importorskip("triton")

Switch = Callable[[bool], None]
SPECS: list[tuple[dict[str, Any], tuple[int, int]]] = [
    ({"name": "reference"}, (20, 192)),
    ({"name": "reference", "group_size": 12}, (7, 101)),  # rows begin within a byte, groups within an eight
    ({"name": "compressed-tensors"}, (64, 96)),
]
LEVELS = [(spec, bits, shape) for spec, shape in SPECS for bits in make_backend(spec).bits]


def both(weight: Callable[[], Any], kernels: Switch) -> tuple[Any, Any]:
    """Of the plain way and of the kernel."""
    kernels(False)
    plain = weight()
    kernels(True)
    return plain, weight()


@pytest.mark.parametrize(("spec", "bits", "shape"), LEVELS, ids=str)
def test_every_level_of_a_backend(spec: dict[str, Any], bits: int, shape: tuple[int, int], kernels: Switch):
    backend = make_backend(spec)
    if backend.unavailable_reason():
        pytest.skip(backend.unavailable_reason())
    torch.manual_seed(0)
    hessian = torch.eye(shape[1]) if backend.calibrated else None
    module = backend.quantize(nn.Linear(shape[1], shape[0], bias=False), bits, hessian=hessian)
    for dtype in (torch.float32, torch.float16):  # the interpreter rounds bfloat16 towards zero
        plain, found = both(lambda dtype=dtype: module.dequantize(dtype), kernels)
        assert torch.equal(plain, found)
    at = torch.tensor([shape[0] - 1, 0, 2, 2])
    plain, found = both(lambda: backend.dequantize_rows(module, at), kernels)
    assert torch.equal(plain, found)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_llama_cpp(name: str, kernels: Switch):
    pytest.importorskip("gguf")
    kind, g = TYPES[name], torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, kind.bytes(1, 512)), generator=g, dtype=torch.uint8)
    for half in (kind.scale_at, kind.scale_at + 2)[: 1 + kind.offset]:
        whole = torch.randn(blocks.numel() // kind.block_bytes, 1, generator=g)
        write_float16(blocks.view(-1, kind.block_bytes), half, whole)
    for dtype in (torch.float32, torch.float16):
        plain, found = both(lambda dtype=dtype: decode_blocks(blocks, kind, dtype), kernels)
        assert torch.equal(plain, found)


@pytest.mark.parametrize(
    ("spec", "shape"),
    [({"name": "reference-gptq", "group_size": 12}, (7, 70)), ({"name": "compressed-tensors"}, (32, 64))],
    ids=str,
)
def test_codes_by_error_feedback(spec: dict[str, Any], shape: tuple[int, int], kernels: Switch):
    g, backend = torch.Generator().manual_seed(0), make_backend(spec)
    x = torch.randn(400, shape[1], generator=g) @ torch.randn(shape[1], shape[1], generator=g)
    linear = nn.Linear(shape[1], shape[0], bias=False)
    linear.weight.data = torch.randn(shape, generator=g)
    linear.weight.data[0, :32] = 0  # groups of scale 0

    def tensors() -> list[Tensor]:
        made = backend.quantize_levels(linear, (4, 8), hessian=x.T @ x)
        return [tensor for module in made.values() for tensor in backend.to_tensors(module).values()]

    for plain, found in zip(*both(tensors, kernels), strict=True):
        assert torch.equal(plain, found)


def test_a_missing_compiler_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    our_kernels._can_compile.cache_clear()

    def no_compiler(*_: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(our_kernels, "try_kernel", no_compiler)
    with caplog.at_level(logging.WARNING):
        assert not any(our_kernels.are_kernels_usable(torch.device("cuda")) for _ in range(3))
    assert len(caplog.records) == 1 and "C compiler" in caplog.text
    assert not our_kernels.are_kernels_usable(torch.device("cpu"))
    our_kernels._can_compile.cache_clear()
