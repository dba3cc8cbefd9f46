"""The reference backend is what its formula says, and takes any shape."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from qra_backends.conformance import make_linear as source
from qra_backends.storage import _ELEMENTS_AT_ONCE
from torch import nn


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_it_rounds_to_the_nearest_of_evenly_spaced_levels(bits: int):
    """Against a loop over groups in plain arithmetic."""
    linear, backend = source((3, 100)), make_backend({"name": "reference", "group_size": 32})
    restored = backend.dequantize(backend.quantize(linear, bits))
    for row, found in zip(linear.weight.detach(), restored, strict=True):
        for start in range(0, 100, 32):
            group = row[start : start + 32]
            scale = ((group.max() - group.min()) / (2**bits - 1)).half().float()
            offset = group.min().half().float()
            levels = offset + scale * torch.arange(2**bits)
            nearest = levels[(group[:, None] - levels).abs().argmin(1)]
            assert torch.allclose(found[start : start + 32], nearest, atol=1e-6)


def test_values_beyond_sixteen_bits_are_refused_with_the_limit():
    linear = source((4, 64))
    linear.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="65504"):
        make_backend("reference").quantize(linear, 4)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_blocks_of_rows_do_not_change_the_weight(bits: int, monkeypatch: pytest.MonkeyPatch):
    linear, backend = nn.Linear(100, 37, bias=False), make_backend({"name": "reference", "group_size": 32})
    layer = backend.quantize(linear, bits)
    whole = {dtype: layer.dequantize(dtype) for dtype in (torch.float32, torch.bfloat16)}
    monkeypatch.setitem(_ELEMENTS_AT_ONCE, "cpu", 800)
    for dtype, weight in whole.items():
        assert torch.equal(layer.dequantize(dtype), weight)
    blocked = backend.quantize(linear, bits)
    assert torch.equal(blocked.codes, layer.codes) and torch.equal(blocked.scale, layer.scale)
