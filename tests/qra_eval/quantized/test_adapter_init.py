"""Calibrated starts: the best low-rank fit by the output's error, read again from where it was kept."""

from __future__ import annotations

import pytest
import torch
from layer_moments import input_moments
from qra_backends import make_backend

from qra_eval.models.linears import find_linears
from qra_eval.models.tiny import tiny_model
from qra_eval.quantized.adapter_init import DAMPING, AdapterInit, calibrated_factors, leading_directions, metric
from qra_eval.quantized.blocks import Blocks
from qra_eval.quantized.build import build
from qra_eval.quantized.weight_cache import QuantizedWeightCache
from qra_eval.tasks.batches import collate
from qra_eval.tasks.encoding import Encoded


def example(out_features=96, in_features=80):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, in_features, generator=g) * torch.logspace(0, -1.5, in_features)
    return torch.randn(out_features, in_features, generator=g), x.T @ x / 200


def damped(hessian):
    return hessian.double() + DAMPING * hessian.double().diagonal().mean() * torch.eye(len(hessian))


def output_error(lost, hessian):
    lost = lost.double()
    return float(((lost @ damped(hessian)) * lost).sum())


@pytest.mark.parametrize("shape", [(96, 80), (24, 80), (96, 30)])
def test_each_rank_is_nearly_as_good_as_the_best_of_that_rank(shape):
    lost, hessian = example(*shape)
    A, B = calibrated_factors(lost, metric(hessian), 16)
    values, vectors = torch.linalg.eigh(damped(hessian))
    root = vectors * values.sqrt() @ vectors.T  # another root of the same metric
    spectrum = torch.linalg.svdvals(lost.double() @ root).square()
    for rank in (1, 4, 16):
        best = float(spectrum[rank:].sum())
        assert best * (1 - 1e-4) <= output_error(lost - B[:, :rank] @ A[:rank], hessian) <= 1.01 * best
    assert output_error(lost - B[:, :4] @ A[:4], hessian) < 0.9 * output_error(lost, hessian)
    torch.testing.assert_close(A.norm(dim=1), B.norm(dim=0))


def test_the_metric_matters():
    lost, hessian = example()
    with_it, without = (calibrated_factors(lost, root, 8) for root in (metric(hessian), torch.eye(80)))
    errors = [output_error(lost - B @ A, hessian) for A, B in (with_it, without)]
    assert errors[0] < 0.9 * errors[1]


def test_of_a_large_matrix_the_directions_are_sketched_and_always_the_same():
    g = torch.Generator().manual_seed(1)
    target = torch.randn(300, 200, generator=g) * torch.logspace(0, -2, 200)
    left, right = leading_directions(target, 6)
    exact = torch.linalg.svdvals(target)[:6]
    torch.testing.assert_close(left.norm(dim=0), exact, rtol=5e-3, atol=0)
    torch.testing.assert_close(right @ right.T, torch.eye(6), atol=1e-4, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip((left, right), leading_directions(target, 6), strict=True))


def test_where_nothing_is_left_to_fit_directions_are_zero():
    A, B = calibrated_factors(torch.zeros(6, 4), torch.eye(4), 8)
    assert A.shape == (8, 4) and B.shape == (6, 8) and not A.any() and not B.any()


@pytest.fixture
def prepared(tmp_path):
    """A bank of which nothing is made, its model's layers, and a batch of calibration rows."""
    model = tiny_model(dtype=torch.float32).model
    found = find_linears(model)
    linears, layers = {f.name: f.module for f in found}, {f.name: f.layer for f in found}
    bank = QuantizedWeightCache(linears, make_backend("reference"), (2, 4), tmp_path, "test", layers=layers)
    ids = torch.randint(0, 300, (4, 24), generator=torch.Generator().manual_seed(0))
    blocks = Blocks(model, torch.device("cpu"), torch.float32)
    return bank, blocks, [collate([Encoded(row, row) for row in ids])]


def test_starts_are_fitted_once_and_read_again(prepared, monkeypatch):
    bank, blocks, batches = prepared
    told, layers, every = [], [], set(bank.layer_of.values())
    fit = AdapterInit.fit
    monkeypatch.setattr(AdapterInit, "fit", lambda self, layer, *args: layers.append(layer) or fit(self, layer, *args))
    first = AdapterInit(bank, 4, "rows", every)
    with pytest.raises(RuntimeError, match="was not fitted"):
        first.factors(next(iter(bank.linears)), 2)
    build(bank, blocks, batches, lambda *args: told.append(args), first)
    assert told[-1] == ("quantize", len(bank.linears), len(bank.linears))
    again = AdapterInit(bank, 4, "rows", every)
    build(bank, blocks, batches, starts=again)
    assert layers == sorted(set(bank.layer_of.values()))
    for name, linear in bank.linears.items():
        A, B = again.factors(name, 2)
        assert A.shape == (4, linear.in_features) and B.shape == (linear.out_features, 4)
        lost = linear.weight - bank.weight(name, 2)
        assert (lost - B @ A).norm() < lost.norm()
    again.path(1, 2).write_bytes(b"cut off")
    build(bank, blocks, batches, starts=AdapterInit(bank, 4, "rows", every))
    assert layers[-1] == 1 and len(layers) == len(set(layers)) + 1
    others = AdapterInit(bank, 2, "rows", every), AdapterInit(bank, 4, "other rows", every)
    assert all(other.missing() for other in others) and not AdapterInit(bank, 4, "rows", every).missing()


def test_in_turn_less_of_the_output_is_lost_and_the_bank_stays_as_it_was(prepared):
    bank, blocks, batches = prepared
    every = set(bank.layer_of.values())
    once, turned = AdapterInit(bank, 4, "rows", every), AdapterInit(bank, 4, "rows", every, taken=2)
    build(bank, blocks, batches, starts=once)
    files = {path: path.read_bytes() for path in bank.folder.glob("*.safetensors")}
    build(bank, blocks, batches, starts=turned)
    assert files.items() <= {path: path.read_bytes() for path in bank.folder.glob("*.safetensors")}.items()
    assert once.bases is bank and turned.bases is not bank
    hessians = {}
    for names, moments in input_moments(blocks, bank.linears, bank.layer_of, batches):
        hessians |= {name: moments.hessian(name) for name in names}

    def lost(starts, name, rank):
        A, B = starts.factors(name, 2)
        return output_error(
            bank.linears[name].weight - starts.bases.weight(name, 2) - B[:, :rank] @ A[:rank], hessians[name]
        )

    for rank in (2, 4):
        ratios = [lost(turned, name, rank) / lost(once, name, rank) for name in bank.linears]
        assert sum(ratios) / len(ratios) < 0.97
    again = AdapterInit(bank, 4, "rows", every, taken=2)
    assert not again.missing()
    again.bases.path(1, 4).unlink()
    assert AdapterInit(bank, 4, "rows", every, taken=2).missing() == {1: [4]}
    assert AdapterInit(bank, 4, "rows", every, taken=1).missing().keys() == every
