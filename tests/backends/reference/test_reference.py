"""The reference backend is what its formula says, and takes any shape."""

from __future__ import annotations

import pytest
import torch
from qra_backends import count_live_bytes, make_backend
from qra_backends.conformance import make_linear as source
from qra_backends.storage import _ELEMENTS
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


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 65), (5, 1000)])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_any_shape_is_stored_without_padding(shape: tuple[int, int], bits: int):
    backend = make_backend("reference")
    module = backend.quantize(source(shape), bits)
    groups = shape[0] * -(-shape[1] // 64)
    assert count_live_bytes(module) == -(-shape[0] * shape[1] * bits // 8) + 4 * groups


def test_values_beyond_sixteen_bits_are_refused_with_the_limit():
    linear = source((4, 64))
    linear.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match="65504"):
        make_backend("reference").quantize(linear, 4)


def test_tensors_of_another_group_size_are_refused():
    tensors = make_backend("reference").to_tensors(make_backend("reference").quantize(source((8, 64)), 4))
    other = make_backend({"name": "reference", "group_size": 32})
    with pytest.raises(ValueError, match="other options"):
        other.from_tensors(tensors, bits=4, out_features=8, in_features=64)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_blocks_of_rows_do_not_change_the_weight(bits: int, monkeypatch: pytest.MonkeyPatch):
    linear, backend = nn.Linear(100, 37, bias=False), make_backend({"name": "reference", "group_size": 32})
    layer = backend.quantize(linear, bits)
    whole = {dtype: layer.dequantize(dtype) for dtype in (torch.float32, torch.bfloat16)}
    monkeypatch.setitem(_ELEMENTS, "cpu", 800)
    for dtype, weight in whole.items():
        assert torch.equal(layer.dequantize(dtype), weight)
    blocked = backend.quantize(linear, bits)
    assert torch.equal(blocked.codes, layer.codes) and torch.equal(blocked.scale, layer.scale)
