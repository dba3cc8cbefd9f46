"""Every backend at every width, through train, eval, save, load, an adapter on top and its merge: each works, or is
refused with a reason. Nothing silently does nothing."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from qra_backends import Backend, make_backend
from qra_backends.conformance import quantized
from qra_backends.mixed import MixedBackend
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="peft is not installed")

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
SHAPES = ((128, 64), (64, 128))  # out, in, of two linears with a norm between
OURS = ("bitsandbytes", "compressed-tensors", "gguf", "gptq", "hqq", "mixed", "reference", "reference-gptq")
"""Not what others have plugged in."""
CELLS = [(name, bits) for name in OURS for bits in WIDTHS if bits in make_backend(name).bits]
REFUSED = [(name, bits) for name in OURS for bits in WIDTHS if (name, bits) not in CELLS]

NO_MERGE = {
    "reference": "the stored weight is quantized and takes no merge",
    "reference-gptq": "the stored weight is quantized and takes no merge",
    "gptq": "the stored weight is quantized and takes no merge",
    "compressed-tensors": "the stored weight is quantized and takes no merge",
}
"""What is said where an adapter cannot be merged into the stored weight; every other backend merges."""


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


@pytest.mark.parametrize(("name", "bits"), REFUSED)
def test_a_width_that_it_lacks_is_refused_with_the_reason(name: str, bits: int):
    backend = make_backend(name)
    reason = backend.supports(bits, *SHAPES[0])
    assert reason is not None and str(bits) in reason and "choose" in reason
    with pytest.raises(ValueError, match=f"{bits} bits"):
        backend.storage(bits)
    if backend.unavailable() is None:
        with pytest.raises(ValueError, match=str(bits)):
            quantized(backend, bits, nn.Linear(64, 128))


@pytest.mark.parametrize(("name", "bits"), CELLS)
def test_quantized_it_computes_nearly_the_same_in_train_and_eval_mode(name: str, bits: int):
    here = cell(name, bits)
    model = here.model()
    plain = nn.Sequential(here.linears[0], nn.LayerNorm(SHAPES[0][0]), here.linears[1])(here.x)
    trained, evaluated = model.train()(here.x), model.eval()(here.x)
    assert torch.equal(trained, evaluated)
    error = (trained - plain).norm() / plain.norm()
    assert 0 < error < 2.0 ** (2.2 - bits), f"relative error {error:.4f} at {bits} bits"


@pytest.mark.parametrize(("name", "bits"), CELLS)
def test_saved_and_loaded_it_is_the_same(name: str, bits: int, tmp_path: Path):
    here = cell(name, bits)
    for module, (out_features, in_features) in zip(here.modules, SHAPES, strict=True):
        save_file(here.backend.to_tensors(module), tmp_path / "w")
        shape = {"out_features": out_features, "in_features": in_features}
        loaded = here.backend.from_tensors(load_file(tmp_path / "w"), bits=bits, **shape, dtype=torch.float32)
        assert torch.equal(here.backend.dequantize(loaded), here.backend.dequantize(module))
        x = torch.randn(3, in_features)
        assert torch.equal(loaded(x), module(x)) and loaded(x).abs().max() > 0


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
        if stores in NO_MERGE:
            with pytest.raises((RuntimeError, ValueError), match=NO_MERGE[stores]):
                model.merge_and_unload()
            return
        merged = model.merge_and_unload()(here.x)
    assert (merged - wanted).norm() < 0.9 * (without - wanted).norm(), "merging lost the adapter"
