"""Initialisations are peft's own mathematics, on the bases that the bank holds."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.incremental_pca import IncrementalPCA
from peft.utils.loftq_utils import _low_rank_decomposition
from qra_backends import make_backend
from torch import nn

from qra_eval.models.linears import find_linears
from qra_eval.models.tiny import tiny_model
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.calibration import input_moments
from qra_eval.quantized.initialisation import Initialiser, input_components, low_rank_factors
from qra_eval.quantized.weight_cache import QuantizedWeightCache
from qra_eval.tasks.batches import collate
from qra_eval.tasks.encoding import Encoded

ALPHA, RANKS = 4.0, (2, 8)


def linears(dtype=torch.float32):
    torch.manual_seed(0)
    made = {"wide": nn.Linear(96, 64, bias=False), "tall": nn.Linear(64, 128), "narrow": nn.Linear(64, 4)}
    for linear in made.values():
        linear.weight.data = torch.randn_like(linear.weight) * torch.logspace(0, -2, linear.in_features)
    return {name: linear.requires_grad_(False).to(dtype) for name, linear in made.items()}


@pytest.fixture
def bank(tmp_path):
    bank = QuantizedWeightCache(linears(), make_backend("reference"), (2, 4, 16), tmp_path, "test")
    for bits in (2, 4):
        made = {name: bank.backend.quantize(linear, bits) for name, linear in bank.linears.items()}
        bank.write(0, bits, {name: bank.backend.to_tensors(module) for name, module in made.items()})
    return bank


def initialiser(kind, bank, **given):
    return Initialiser(kind, bank, bank.backend, alpha=ALPHA, max_rank=max(RANKS), **given)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", ["wide", "tall"])
def test_pissa_is_that_of_peft_with_its_residual_quantized(bank, name, rank):
    given = bank.linears[name]
    model = nn.Sequential()
    model.add_module("one", nn.Linear(given.in_features, given.out_features, bias=given.bias is not None))
    model.one.load_state_dict(given.state_dict())
    config = LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=["one"], init_lora_weights="pissa")
    layer = get_peft_model(model, config).base_model.model.one
    made = initialiser("pissa", bank)
    A, B = made.factors(name, 2, rank, seed=0)
    theirs = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    torch.testing.assert_close(B @ A, theirs.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(A.norm(dim=1), layer.lora_A["default"].weight.norm(dim=1).detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.weight(name, 16, rank), layer.base_layer.weight.detach(), atol=1e-4, rtol=1e-4)
    residual = bank.backend.quantize(layer.base_layer.requires_grad_(False), 4)
    close = (made.weight(name, 4, rank) - bank.backend.dequantize(residual)).abs() < 1e-3
    assert close.float().mean() > 0.99  # a code at the edge between two may fall to either side
    assert torch.equal(made.module(name, 4, rank).bias, given.bias) if given.bias is not None else True


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("name", ["wide", "tall"])
def test_loftq_fits_what_quantization_lost_as_peft_does(bank, name, bits, rank):
    lost = bank.linears[name].weight - bank.weight(name, bits)
    theirs = _low_rank_decomposition(lost, reduced_rank=rank)
    made = initialiser("loftq", bank)
    A, B = made.factors(name, bits, rank, seed=0)
    torch.testing.assert_close(ALPHA / rank * B @ A, theirs["L"] @ theirs["R"], atol=1e-4, rtol=1e-3)
    assert torch.equal(made.weight(name, bits, rank), bank.weight(name, bits))
    assert (lost - ALPHA / rank * B @ A).norm() < lost.norm()


def test_at_16_bits_loftq_starts_as_default_does(bank):
    for ours, default in zip(
        initialiser("loftq", bank).factors("tall", 16, 2, 3), initialiser("default", bank).factors("tall", 2, 2, 3),
        strict=True,
    ):  # fmt: skip
        assert torch.equal(ours, default)


def test_a_linear_narrower_than_the_rank_gets_zero_directions(bank):
    A, B = initialiser("pissa", bank).factors("narrow", 4, 8, 0)
    assert A.shape == (8, 64) and B.shape == (4, 8) and not A[4:].any() and not B[:, 4:].any()
    torch.testing.assert_close(ALPHA / 8 * B @ A, bank.linears["narrow"].weight, atol=1e-4, rtol=1e-4)


def test_nothing_lost_gives_zero_factors():
    A, B = low_rank_factors(torch.zeros(6, 4), 2)
    assert not A.any() and not B.any()


def test_without_a_rank_the_base_is_the_banks_own(bank):
    assert torch.equal(initialiser("pissa", bank).weight("wide", 4, 0), bank.weight("wide", 4))
    assert initialiser("pissa", bank).base("wide", 4, 0) == () != initialiser("pissa", bank).base("wide", 4, 2)


def test_a_calibrated_start_is_the_leading_part_of_the_fit(bank):
    class Fitted:
        def factors(self, name, level):
            assert (name, level) == ("tall", 2)
            g = torch.Generator().manual_seed(0)
            return torch.randn(8, 64, generator=g), torch.randn(128, 8, generator=g)

    made = initialiser("calibrated", bank, starts=Fitted())
    whole_A, whole_B = Fitted().factors("tall", 2)
    for rank in RANKS:
        A, B = made.factors("tall", 2, rank, seed=0)
        torch.testing.assert_close(ALPHA / rank * B @ A, whole_B[:, :rank] @ whole_A[:rank])
    default = initialiser("default", bank)
    for ours, theirs in zip(made.factors("tall", 16, 2, 3), default.factors("tall", 16, 2, 3), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float32).model


def layers_of(model, batches):
    found = find_linears(model)
    blocks = Blocks(model, torch.device("cpu"), torch.float32)
    return input_moments(blocks, {f.name: f.module for f in found}, {f.name: f.layer for f in found}, batches)


def some_batches():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 300, (4, 24), generator=generator) for _ in range(3)]
    return [collate([Encoded(row, row) for row in rows]) for rows in ids]


def test_eva_is_pefts_incremental_pca_of_the_inputs(model):
    found = {f.name: f.module for f in find_linears(model)}
    name = next(n for n in found if n.endswith("down_proj"))
    names, moments = next(layers_of(model, some_batches()))
    seen, pca = [], IncrementalPCA(n_components=4)
    handle = found[name].register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, 1)))
    for batch in some_batches():
        model(input_ids=batch.input_ids)
    handle.remove()
    pca.fit(torch.cat(seen))
    ours = input_components(names, moments, 4)[name]
    alike = (ours * pca.components_).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones(4), atol=2e-3, rtol=0)
    torch.testing.assert_close(moments.mean(name), torch.cat(seen).mean(0), atol=1e-4, rtol=1e-3)


def test_eva_takes_its_components_as_rows_of_a_and_starts_at_zero(model, tmp_path):
    linears = {f.name: f.module for f in find_linears(model)}
    bank = QuantizedWeightCache(linears, make_backend("reference"), (2,), tmp_path, "test")
    made = initialiser("eva", bank, inputs=lambda: layers_of(model, some_batches()))
    name = next(iter(linears))
    A, B = made.factors(name, 2, 2, 0)
    torch.testing.assert_close(A @ A.T, torch.eye(2), atol=1e-4, rtol=1e-4)
    assert not B.any() and B.shape == (64, 2) and set(made.components) == set(linears)


def test_the_hessians_that_pissa_needs_on_a_calibrated_backend_are_read_from_files(model, tmp_path):
    linears = {f.name: f.module for f in find_linears(model)}
    bank = QuantizedWeightCache(linears, make_backend("reference-gptq"), (2,), tmp_path, "test")
    made = initialiser("pissa", bank, inputs=lambda: layers_of(model, some_batches()))
    for names, moments in layers_of(model, some_batches()):
        assert all(torch.equal(made.hessians[name], moments.hessian(name)) for name in names)
    name = next(iter(linears))
    direct = bank.backend.quantize(made._residual(name, 2), 2, hessian=made.hessians[name])
    assert torch.equal(made.weight(name, 2, 2), bank.backend.dequantize(direct))
