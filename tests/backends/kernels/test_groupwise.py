"""Weights from the kernel, in Triton's interpreter, are those of the plain way, bit for bit; where it is used, and not."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from qra_backends import make_backend
from qra_backends.kernels import choice
from torch import nn

pytest.importorskip("triton")


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our kernels are used on a CPU as well."""
    return monkeypatch.setattr(choice, "usable", lambda device: True)


def quantized(spec: dict, bits: int, shape: tuple[int, int]) -> nn.Module:
    backend, linear = make_backend(spec), nn.Linear(shape[1], shape[0], bias=False)
    return backend.quantize(linear, bits, hessian=torch.eye(shape[1]) if backend.calibrated else None)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize(("shape", "size"), [((20, 192), 64), ((7, 101), 12)])
def test_packed_codes_at_any_width_and_shape(bits: int, shape: tuple[int, int], size: int, monkeypatch):
    module = quantized({"name": "reference", "group_size": size}, bits, shape)
    plain = {dtype: module.dequantize(dtype) for dtype in (torch.float32, torch.float16)}
    monkeypatch.setattr(choice, "usable", lambda device: True)
    for dtype, weight in plain.items():
        assert torch.equal(module.dequantize(dtype), weight)
    at = torch.tensor([shape[0] - 1, 0, 2, 2])
    assert torch.equal(module.rows(at), plain[torch.float32][at])
