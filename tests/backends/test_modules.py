"""The dequantizing linear is F.linear, without keeping the weight."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from qra_backends.modules import apply_dequantized
from torch import nn
from torch.nn import functional as F

WEIGHT = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_output_and_gradients_are_those_of_linear():
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: apply_dequantized(x, WEIGHT.to, bias), (x,))
    assert torch.allclose(apply_dequantized(x, WEIGHT.to, bias), F.linear(x, WEIGHT, bias))


def test_it_asks_for_the_weight_in_the_inputs_dtype_once_each_way():
    asked = []

    def dequantize(dtype: torch.dtype) -> torch.Tensor:
        asked.append(dtype)
        return WEIGHT.to(dtype)

    x = torch.randn(3, 7, dtype=torch.bfloat16, requires_grad=True)
    output = apply_dequantized(x, dequantize)
    assert output.dtype == torch.bfloat16 and asked == [torch.bfloat16]
    output.sum().backward()
    assert asked == [torch.bfloat16] * 2


def test_autograd_keeps_neither_the_weight_nor_the_input():
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda tensor: tensor):
        apply_dequantized(torch.randn(3, 7, requires_grad=True), WEIGHT.to)
    assert kept == []


def test_peft_learns_what_a_weight_is_without_having_it_dequantized(monkeypatch):
    from peft import LoraConfig, get_peft_model

    layer = make_backend("reference").quantize(nn.Linear(64, 32, bias=False), 4)
    calls, dequantize = [], type(layer).dequantize
    monkeypatch.setattr(
        type(layer), "dequantize", lambda self, dtype=None: calls.append(1) or dequantize(self, dtype)
    )
    tuned = get_peft_model(nn.Sequential(layer, nn.Linear(32, 4)), LoraConfig(target_modules=["0"]))
    assert not calls and tuned.base_model.model[0].lora_A["default"].weight.shape == (8, 64)
    weight, x = layer.weight, torch.randn(3, 64, requires_grad=True)
    assert (weight.shape, weight.dtype, weight.requires_grad) == ((32, 64), torch.float32, False)
    output = F.linear(x, weight)
    assert torch.equal(output, layer(x))
    output.sum().backward()
    assert torch.allclose(x.grad, dequantize(layer).sum(0).expand(3, 64), atol=1e-5)
    assert type(weight.detach()) is torch.Tensor and torch.equal(weight, dequantize(layer))
    with pytest.raises(RuntimeError, match="cannot be written or merged into"):
        weight.data  # noqa: B018
    with pytest.raises(RuntimeError, match="cannot be written or merged into"):
        weight.add_(1)
