"""GPTQ: less output error than rounding, at the same bytes, whenever inputs are correlated."""

from __future__ import annotations

import pytest
import torch
from correlated import correlated_inputs
from qra_backends import SecondMoment, make_backend
from qra_backends.reference.gptq import _ROWS_AT_ONCE, choose_codes, factorize
from qra_backends.storage import _ELEMENTS_AT_ONCE
from torch import Tensor, nn


def output_error(restored: Tensor, linear: nn.Linear, x: Tensor) -> float:
    return float(
        ((x @ (restored - linear.weight.detach()).T) ** 2).sum() / ((x @ linear.weight.detach().T) ** 2).sum()
    )


def setup(out_features: int = 48, in_features: int = 128) -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    x = correlated_inputs(600, in_features)
    return nn.Linear(in_features, out_features, bias=False), x[300:], x[:300].T @ x[:300] / 300


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_output_error_on_new_inputs_is_well_below_rounding(bits: int):
    linear, x, hessian = setup()
    gptq, rounding = make_backend("reference-gptq"), make_backend({"name": "reference", "ranges": "mse"})
    calibrated = output_error(gptq.dequantize(gptq.quantize(linear, bits, hessian=hessian)), linear, x)
    assert calibrated < 0.5 * output_error(rounding.dequantize(rounding.quantize(linear, bits)), linear, x)
    assert gptq.storage(bits).bytes(48, 128) == rounding.storage(bits).bytes(48, 128)


def test_codes_are_those_of_the_optimal_brain_step():
    """Against the textbook: round a column, then move the rest by the inverse Hessian of the columns left."""
    linear, _, hessian = setup(5, 12)
    weight, scale = linear.weight.detach().double(), torch.full((5, 3), 0.1)
    offset = torch.full((5, 3), -0.15)
    damped = hessian.double() + 0.1 * hessian.diagonal().mean().double() * torch.eye(12)
    left, codes = list(range(12)), torch.zeros(5, 12)
    for column in hessian.diagonal().argsort(descending=True).tolist():
        inverse = torch.linalg.inv(damped[left][:, left])
        i = left.index(column)
        s, o = scale[:, column // 4].half().double(), offset[:, column // 4].half().double()
        code = ((weight[:, column] - o) / s).round().clamp(0, 3)
        codes[:, column] = code
        error = weight[:, column] - (code * s + o)
        weight[:, left] -= torch.outer(error / inverse[i, i], inverse[i])
        left.remove(column)
    found = choose_codes(linear.weight.detach(), scale.half(), offset.half(), 2, 4, factorize(hessian, 0.1))
    assert torch.equal(found.float(), codes)


def test_inputs_never_seen_leave_their_columns_rounded():
    linear, _, hessian = setup()
    hessian[:10], hessian[:, :10] = 0, 0
    backend = make_backend("reference-gptq")
    restored = backend.dequantize(backend.quantize(linear, 4, hessian=hessian))
    assert (restored - linear.weight).detach()[:, :10].norm() < 0.2 * linear.weight[:, :10].norm()


@pytest.mark.parametrize(
    ("hessian", "message"),
    [
        (torch.eye(5), r"\(128, 128\)"),
        (torch.full((128, 128), torch.nan), "not finite"),
        (torch.zeros(128, 128), "positive definite"),
        (-torch.eye(128), "positive definite"),
    ],
)
def test_a_wrong_hessian_is_refused(hessian: Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        make_backend("reference-gptq").quantize(setup()[0], 3, hessian=hessian)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch):
    linear, _, hessian = setup(101, 72)
    backend, levels = make_backend({"name": "reference-gptq", "group_size": 16}), (2, 3, 4, 8)
    whole = backend.quantize_levels(linear, levels, hessian=hessian)
    monkeypatch.setitem(_ROWS_AT_ONCE, "cpu", 100)
    monkeypatch.setitem(_ELEMENTS_AT_ONCE, "cpu", 600)
    blocked = backend.quantize_levels(linear, levels, hessian=hessian)
    for bits in levels:
        assert torch.equal(blocked[bits].scale, whole[bits].scale)
        same = blocked[bits].dequantize() == whole[bits].dequantize()
        assert same.float().mean() > 0.99  # sums in another order may turn a tie


def test_the_hessian_is_left_as_it_was():
    linear, _, hessian = setup()
    kept = hessian.clone()
    make_backend("reference-gptq").quantize(linear, 3, hessian=hessian)
    assert torch.equal(hessian, kept)


def test_second_moments_gathered_in_batches_are_those_of_all_inputs():
    x = correlated_inputs(64, 16)
    moment = SecondMoment()
    moment.update(x[:10])
    moment.update(x[10:].view(2, 27, 16).bfloat16().float())
    exact = (x[:10].T @ x[:10] + x[10:].bfloat16().float().T @ x[10:].bfloat16().float()) / 64
    assert torch.allclose(moment.compute_hessian(), exact, rtol=1e-5)
    assert moment.count == 64


def test_second_moments_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no input"):
        SecondMoment().compute_hessian()


def test_on_a_card_the_inverse_is_worked_on_in_a_copy() -> None:
    backend, matrix = make_backend("reference-gptq"), 4 * 4096**2
    cpu, cuda = (
        backend.count_work_bytes([4], 64, 4096, torch.bfloat16, device) for device in ("cpu", "cuda")
    )
    assert 2 * matrix <= cpu < 3 * matrix == cuda + backend.storage(4).bytes(64, 4096)  # which are made later
