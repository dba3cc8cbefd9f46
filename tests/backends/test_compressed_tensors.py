"""Codes on a symmetric grid: scales fitted so that hardly another is better, numbers that engines have."""

from __future__ import annotations

import torch
from correlated import example
from qra_backends import make_backend
from qra_backends.libraries.compressed_tensors import fit_groups, round_to_16_bits
from qra_backends.reference.groupwise import encode
from torch import nn


def test_scales_are_numbers_that_engines_have() -> None:
    linear, hessian = example()
    linear.weight.data[0, :64] = 0.0  # a group of nothing
    backend = make_backend("compressed-tensors")
    for module in backend.quantize_levels(linear, backend.bits, hessian=hessian).values():
        scale = module.tensors()["weight_scale"].float()
        assert torch.equal(scale, round_to_16_bits(scale))


def test_a_groups_scale_is_nearly_the_best_of_a_fine_search() -> None:
    torch.manual_seed(0)
    weight, bits, zero = torch.randn(32, 32), 4, 8
    scale, offset = fit_groups(weight, bits, 32, torch.ones(32))
    codes = encode(weight, scale, offset, bits, 32)
    mine = ((codes * scale + offset - weight) ** 2).sum(1)
    best = torch.full((32,), torch.inf)
    for step in filter(None, torch.linspace(-0.75, 0.75, 601).tolist()):
        near = ((weight / step + zero).round().clamp(0, 15) - zero) * step
        best = torch.minimum(best, ((near - weight) ** 2).sum(1))
    assert (mine <= 1.2 * best).all() and mine.sum() <= 1.03 * best.sum()


def test_scales_are_numbers_of_float16_and_of_bfloat16() -> None:
    values = torch.logspace(-9, 4.5, 999)
    kept = round_to_16_bits(values)
    assert torch.equal(kept.half().float(), kept) and torch.equal(kept.bfloat16().float(), kept)
    normal = values > 2**-14
    assert ((kept - values).abs()[normal] <= values[normal] / 256).all()


def test_a_row_that_the_group_does_not_divide_has_smaller_groups() -> None:
    backend = make_backend({"name": "compressed-tensors", "group_size": 128})
    assert [backend.choose_group_size(n) for n in (256, 192, 96)] == [128, 64, 32]
    module = backend.quantize(nn.Linear(96, 32, bias=False), 4, hessian=torch.eye(96))
    assert module.tensors()["weight_scale"].shape == (32, 3)


def test_shapes_that_do_not_fill_words_are_refused() -> None:
    backend = make_backend("compressed-tensors")
    assert "packs words of 32" in str(backend.unsupported_reason(4, 40, 64))
    assert backend.unsupported_reason(2, 64, 64) is not None
