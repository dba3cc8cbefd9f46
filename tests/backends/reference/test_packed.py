"""A packed linear is an nn.Linear to other libraries, but nothing can be merged into a copy of its weight."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from qra_backends.storage import _ELEMENTS
from torch import nn


def test_the_weight_can_be_looked_at_but_not_changed():
    layer = make_backend("reference").quantize(nn.Linear(64, 8), 4)
    assert isinstance(layer, nn.Linear) and layer.weight.shape == (8, 64)
    assert torch.equal(layer.weight, layer.dequantize())
    with pytest.raises(RuntimeError, match="cannot take a merge"):
        layer.weight.data += 1
    assert "weight" not in dict(layer.named_parameters())


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
