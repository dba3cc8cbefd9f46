"""The backend: less output error at fewer bits, the same codes however it is called, rows read by themselves."""

from __future__ import annotations

import pytest
import torch
from correlated import correlated_inputs
from qra_backends import Backend, SecondMoment, make_backend
from qra_backends.conformance import are_equal
from torch import Tensor, nn


def case(out_features: int = 96, in_features: int = 192) -> tuple[nn.Linear, Tensor]:
    """A linear with weights that stand out, and the Hessian of its inputs."""
    torch.manual_seed(0)
    linear = nn.Linear(in_features, out_features, bias=False)
    with torch.no_grad():
        linear.weight.normal_(std=0.05)
        linear.weight[3] *= 20
        linear.weight[torch.rand(linear.weight.shape) < 0.01] *= 10
    moment = SecondMoment()
    moment.update(correlated_inputs(2000, in_features))
    return linear, moment.compute_hessian()


def output_error(backend: Backend, module: nn.Module, linear: nn.Linear) -> float:
    x, weight = correlated_inputs(500, linear.in_features, seed=9), linear.weight.detach()
    lost = x @ (backend.dequantize(module) - weight).T
    return float((lost / (x @ weight.T).norm(dim=0)).square().mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_it_loses_less_than_rounding_each_weight_by_itself_that_takes_more_bits(bits: int):
    (linear, hessian), backends = case(), [make_backend(name) for name in ("trellis", "reference-gptq")]
    stored = [backend.storage(bits).bytes(96, 192) for backend in backends]
    errors = [
        output_error(backend, backend.quantize(linear, bits, hessian=hessian), linear) for backend in backends
    ]
    assert stored[0] < stored[1] - 0.1 * 96 * 192 / 8 and errors[0] < 0.8 * errors[1]


def test_one_short_probe_foretells_the_damage_of_every_level():
    """The constants were measured on real linears; a made-up one of independent inputs is within a fifth of them."""
    (linear, _), backend, hessian = case(576, 576), make_backend("trellis"), torch.eye(576)
    torch.nn.init.normal_(linear.weight, std=0.05)

    def damage(module: nn.Module) -> float:
        change = backend.dequantize(module) - linear.weight.detach()
        return float(((change @ hessian) * change).sum())

    levels = list(backend.bits)
    ((probe, ratios),) = backend.probe_levels(linear, levels, hessian=hessian)
    assert list(ratios) == levels and sorted(ratios.values(), reverse=True) == list(ratios.values())
    for level, module in backend.quantize_levels(linear, levels, hessian=hessian).items():
        assert damage(module) == pytest.approx(ratios[level] * damage(probe), rel=0.2), level
    mixed = make_backend({"name": "mixed", "choice": {2: "trellis", 4: "bitsandbytes-nf4", 8: "reference"}})
    found = mixed.probe_levels(linear, mixed.bits, hessian=hessian)
    assert [list(ratios) for _, ratios in found] == [[2], [4], [8]]
    assert [ratios for _, ratios in found[1:]] == [{4: 1.0}, {8: 1.0}]
    assert torch.equal(mixed.dequantize(found[0][0]), backend.dequantize(probe))


def test_output_weights_lower_the_weighted_error_and_alike_they_change_nothing():
    (linear, hessian), backend = case(), make_backend({"name": "trellis", "L": 10})
    weights = torch.rand(96, generator=torch.Generator().manual_seed(3)).pow(4)

    def weighted_error(module: nn.Module) -> float:
        lost = backend.dequantize(module) - linear.weight.detach()
        return float(weights @ ((lost @ hessian) * lost).sum(1))

    plain = backend.quantize(linear, 2, hessian=hessian)
    weighted = backend.quantize(linear, 2, hessian=hessian, output_weights=weights)
    assert weighted_error(weighted) < 0.85 * weighted_error(plain)
    for alike in (torch.full((96,), 3.0), torch.zeros(96)):
        other = backend.quantize(linear, 2, hessian=hessian, output_weights=alike)
        assert are_equal(backend.to_tensors(other), backend.to_tensors(plain))


def test_rows_of_a_table_are_decoded_by_themselves():
    torch.manual_seed(0)
    backend, table = make_backend({"name": "trellis", "L": 10}), nn.Linear(64, 3000, bias=False)
    module = backend.quantize(table, 3, hessian=torch.eye(64))
    whole, at = backend.dequantize(module), torch.tensor([2999, 0, 1234, 1234])
    assert torch.equal(backend.dequantize_rows(module, at), whole[at])
    code = backend.make_code(3)
    needed = torch.zeros(len(module.codes), dtype=torch.bool)
    for row in at.tolist():
        needed[code.locate_state(row) // 8 : (code.locate_state(row) + code.L - 1) // 8 + 1] = True
    module.codes[~needed] = 255
    assert torch.equal(backend.dequantize_rows(module, at), whole[at]), "other bytes do not count"


def test_scales_are_least_squares_under_the_damped_hessian():
    (linear, hessian), backend = case(), make_backend({"name": "trellis", "L": 10})
    module = backend.quantize(linear, 2, hessian=hessian)
    damped = hessian.double() + 0.03 * hessian.diagonal().mean() * torch.eye(192)
    weight, found = linear.weight.detach().double(), backend.dequantize(module).double()
    pull = found @ damped
    better = (pull * weight).sum(1) / (pull * found).sum(1)
    assert torch.allclose(better, torch.ones(96).double(), atol=1e-3)


def test_what_cannot_be_stored_is_refused():
    linear, hessian = case()
    backend = make_backend("trellis")
    with pytest.raises(
        ValueError, match=r"does not store 8 bits: choose from 1, trellis-1.5, 2, trellis-2.5, 3, "
    ):
        backend.quantize(linear, 8, hessian=hessian)
    with pytest.raises(ValueError, match=r"SecondMoment.*torch\.eye\(192\)"):
        backend.quantize(linear, 2)
    for wrong, message in (
        (torch.ones(95), r"output_weights must be \(96,\)"),
        (-torch.ones(96), "not below zero"),
    ):
        with pytest.raises(ValueError, match=message):
            backend.quantize(linear, 2, hessian=hessian, output_weights=wrong)
    with torch.no_grad():
        linear.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match="represent 65504 at most"):
        backend.quantize(linear, 2, hessian=hessian)
    module = backend.quantize(case()[0], 4, hessian=hessian)
    other = make_backend({"name": "trellis", "L": 16})
    with pytest.raises(ValueError, match="quantized with other options"):
        other.from_tensors(backend.to_tensors(module), bits=4, out_features=96, in_features=192)


def test_levels_between_whole_bits_have_names_and_widths_of_their_own_and_a_part_in_a_mixed_backend():
    backend = make_backend("trellis")
    assert backend.bits == (1, "trellis-1.5", 2, "trellis-2.5", 3, "trellis-3.5", 4, "trellis-4.5", 5)
    assert [backend.width(bits) for bits in backend.bits] == [1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]
    mixed = make_backend({2: "trellis", "2.5": "trellis", 8: "reference"})
    assert mixed.bits == (2, "trellis-2.5", 8) and mixed.width("trellis-2.5") == 2.5
    assert make_backend(mixed.spec).bits == mixed.bits
