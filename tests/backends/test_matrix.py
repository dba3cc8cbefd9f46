"""Every backend under PEFT: an adapter trains on top of its narrowest and widest level, and a merge is refused."""

from __future__ import annotations

import pytest
import torch
from qra_backends import make_backend
from qra_backends.conformance import quantize_linear
from torch import nn

peft = pytest.importorskip("peft", reason="peft is not installed")

SHAPES = ((128, 64), (64, 128))  # out, in, of two linears with a norm between
OURS = ("bitsandbytes", "compressed-tensors", "mixed", "reference", "reference-gptq", "trellis")
"""Not what others have plugged in."""


@pytest.mark.parametrize("name", OURS)
def test_an_adapter_on_top_counts_and_trains_and_the_base_stays_and_takes_no_merge(name: str):
    backend = make_backend(name)
    if backend.unavailable_reason() is not None:
        pytest.skip(backend.unavailable_reason())
    torch.manual_seed(0)
    linears = [nn.Linear(i, o, bias=False) for o, i in SHAPES]
    modules = [
        quantize_linear(backend, backend.bits[i], linear) for i, linear in zip((0, -1), linears, strict=True)
    ]
    x, model = torch.randn(5, SHAPES[0][1]), nn.Sequential(modules[0], nn.LayerNorm(SHAPES[0][0]), modules[1])
    model.is_loaded_in_8bit = model.is_loaded_in_4bit = True  # PEFT's bitsandbytes layers
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=False)
    model = peft.get_peft_model(model, config)
    before = [backend.dequantize(module) for module in modules]
    with model.disable_adapter():
        without = model(x)
    assert not torch.allclose(model(x), without, rtol=1e-3, atol=1e-4)
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert len(parameters) == 4 and all("lora_" in key for key in parameters)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.01)
    first = model(x).square().mean()
    first.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in parameters.values())
    optimizer.step()
    assert model(x).square().mean() < first
    with model.disable_adapter():
        assert torch.equal(model(x), without)
    assert all(torch.equal(backend.dequantize(m), w) for m, w in zip(modules, before, strict=True))
    with pytest.raises(RuntimeError, match="a quantized weight cannot be written or merged into"):
        model.merge_and_unload()
