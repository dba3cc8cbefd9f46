"""Every backend at every width under PEFT: an adapter trains on top, and its merge works or is refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from qra_backends import Backend, make_backend
from qra_backends.conformance import quantized
from qra_backends.mixed import MixedBackend
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="peft is not installed")

SHAPES = ((128, 64), (64, 128))  # out, in, of two linears with a norm between
OURS = ("bitsandbytes", "compressed-tensors", "hqq", "mixed", "reference", "reference-gptq", "trellis")
"""Not what others have plugged in."""
CELLS = [(name, bits) for name in OURS for bits in make_backend(name).bits]

MERGES = ("bitsandbytes", "hqq")
"""Whose stored weight PEFT can merge an adapter into."""


class Cell:
    """A small model on one backend at one width, and the same before it was quantized."""

    def __init__(self, backend: Backend, bits: int):
        torch.manual_seed(0)
        self.backend, self.bits = backend, bits
        self.linears = [nn.Linear(i, o, bias=False) for o, i in SHAPES]
        self.modules = [quantized(backend, bits, linear) for linear in self.linears]
        self.x = torch.randn(5, SHAPES[0][1])

    def model(self) -> nn.Module:
        first, second = self.modules
        model = nn.Sequential(first, nn.LayerNorm(SHAPES[0][0]), second)
        model.is_loaded_in_8bit = model.is_loaded_in_4bit = True  # type: ignore[assignment] # PEFT's bitsandbytes layers
        return model

    def adapted(self) -> nn.Module:
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=False)
        return peft.get_peft_model(self.model(), config)


def cell(name: str, bits: int) -> Cell:
    backend = make_backend(name)
    if backend.unavailable() is not None:
        pytest.skip(backend.unavailable())
    return Cell(backend, bits)


def changed(one: Tensor, other: Tensor) -> bool:
    return not torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "bits"), CELLS)
def test_an_adapter_on_top_counts_and_trains_and_the_base_stays(name: str, bits: int):
    here = cell(name, bits)
    before = [here.backend.dequantize(module) for module in here.modules]
    model = here.adapted()
    with model.disable_adapter():
        without = model(here.x)
    assert changed(model(here.x), without)
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert len(parameters) == 4 and all("lora_" in key for key in parameters)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.01)
    first = model(here.x).square().mean()
    first.backward()
    assert all(p.grad is not None and p.grad.norm() > 0 for p in parameters.values())
    optimizer.step()
    assert model(here.x).square().mean() < first
    with model.disable_adapter():
        assert torch.equal(model(here.x), without)
    assert all(torch.equal(here.backend.dequantize(m), w) for m, w in zip(here.modules, before, strict=True))


@pytest.mark.parametrize(("name", "bits"), CELLS)
def test_a_merge_brings_the_adapter_in_or_is_refused_with_a_reason(name: str, bits: int):
    here = cell(name, bits)
    model = here.adapted()
    with model.disable_adapter():
        without = model(here.x)
    wanted = model(here.x)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.eval()(here.x)  # in eval mode bitsandbytes' own layer repacks its weight, and merges garbage from then on
        stores = here.backend.part(bits).name if isinstance(here.backend, MixedBackend) else name
        if stores not in MERGES:
            with pytest.raises(RuntimeError, match="the stored weight is quantized and takes no merge"):
                model.merge_and_unload()
            return
        merged = model.merge_and_unload()(here.x)
    assert (merged - wanted).norm() < 0.9 * (without - wanted).norm(), "merging lost the adapter"
