"""Polish: the output error falls with every sweep, at the same bytes, whatever the shapes."""

from __future__ import annotations

import pytest
import torch
from correlated import DAMPING, damped_error, example
from hypothesis import given, settings
from hypothesis import strategies as st
from qra_backends import make_backend
from qra_backends.reference import polish as polishing
from torch import Tensor, nn

ROUNDING = 1 + 1e-5
"""What sums in float32 may add."""


def quantized(linear: nn.Linear, hessian: Tensor, levels: tuple[int, ...], **options: int) -> dict[int, Tensor]:
    backend = make_backend({"name": "reference-gptq", "damping": DAMPING, **options})
    modules = backend.quantize_levels(linear, levels, hessian=hessian)
    return {bits: backend.dequantize(module) for bits, module in modules.items()}


@settings(max_examples=5, deadline=None)
@given(
    out_features=st.integers(1, 12),
    in_features=st.integers(2, 100),
    group_size=st.sampled_from([4, 24, 64, 80]),
    seed=st.integers(0, 1000),
)
def test_no_sweep_raises_the_error_of_any_row(out_features: int, in_features: int, group_size: int, seed: int):
    linear, hessian = example(out_features, in_features, seed)
    linear.weight.data[0, : in_features // 2] = 0.25  # groups of equal weights, stored with a scale of 0
    levels = (2, 3, 4, 8)
    swept = [quantized(linear, hessian, levels, group_size=group_size, polish=n) for n in range(3)]
    for bits in levels:
        plain, once, twice = (damped_error(found[bits], linear, hessian) for found in swept)
        assert (once <= plain * ROUNDING).all()
        assert (twice <= once * ROUNDING).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_tenth_of_the_error_goes_at_the_same_bytes(bits: int):
    linear, hessian = example(32, 192, 0)
    found = [damped_error(quantized(linear, hessian, (bits,), polish=n)[bits], linear, hessian).sum() for n in (0, 2)]
    assert found[1] < 0.9 * found[0]


def test_each_code_is_the_best_that_the_others_leave_it():
    """The last group's last code is moved last, so no other code of its grid is better."""
    linear, hessian = example(6, 40, 3)
    backend = make_backend({"name": "reference-gptq", "group_size": 8, "polish": 1})
    module = backend.quantize(linear, 3, hessian=hessian)
    weight, scale = backend.dequantize(module), module.scale.view(torch.float16).float()[:, -1]
    least = damped_error(weight, linear, hessian)
    for step in (-1, 1):
        moved = weight.clone()
        moved[:, -1] += step * scale
        offset = module.offset.view(torch.float16).float()[:, -1]
        inside = ((moved[:, -1] - offset) / scale).round().clamp(0, 7) == ((moved[:, -1] - offset) / scale).round()
        assert inside.any()
        assert (damped_error(moved, linear, hessian) >= least - 1e-6)[inside].all()


def test_blocks_of_columns_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    linear, hessian = example(8, 150, 1)
    blocked = quantized(linear, hessian, (2, 3), group_size=16)
    monkeypatch.setattr(polishing, "BLOCK", 16)
    monkeypatch.setattr(polishing, "_STEP", 5)
    narrow = quantized(linear, hessian, (2, 3), group_size=16)
    for bits in (2, 3):
        assert torch.isclose(narrow[bits], blocked[bits], atol=1e-3).float().mean() > 0.97  # a tie may turn
