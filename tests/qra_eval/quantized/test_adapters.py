"""LoRA under a plan computes what peft's own layer computes, and ranks are nested."""

from __future__ import annotations

import weakref

import pytest
import torch
from qra_backends import make_backend
from torch import nn

from qra_eval.quantized import adapters
from qra_eval.quantized.adapters import TrainedScales


def linear(dtype=torch.bfloat16, bias=True):
    torch.manual_seed(0)
    return nn.Linear(24, 40, bias=bias).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_wrapper_equals_peft_to_the_bit(dtype):
    from peft import LoraConfig
    from peft.tuners.lora import Linear as PeftLinear

    base = linear(dtype)
    torch.manual_seed(1)
    A, B = torch.randn(8, 24).to(dtype), torch.randn(40, 8).to(dtype)
    mine = adapters.AdaptedLinear(base)
    mine.set_adapter(A.float(), B.float(), scaling=2.0)
    theirs = PeftLinear(base, "default", config=LoraConfig(r=8, lora_alpha=16), r=8, lora_alpha=16)
    theirs.lora_A["default"].weight.data, theirs.lora_B["default"].weight.data = A, B
    x = torch.randn(3, 5, 24).to(dtype)
    assert torch.equal(mine(x), theirs(x))


@pytest.mark.parametrize(
    ("stored", "passed"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
)
def test_a_linear_in_16_bits_multiplies_in_the_dtype_of_its_input(stored, passed):
    """As in a pass in float32, or if a model computes in another dtype than it is stored in."""
    base, x = linear(stored), torch.randn(3, 24).to(passed)
    wrapped = adapters.AdaptedLinear(base)
    wrapped.set_base(module=base)
    assert torch.equal(wrapped(x), nn.functional.linear(x, base.weight.to(passed), base.bias.to(passed)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("needs_input_gradient", [True, False])
def test_training_on_a_plain_weight_gives_the_gradients_of_the_composed_operations(
    bias, needs_input_gradient
):
    base = linear(torch.float64, bias)
    A, B = torch.randn(4, 24).double(), torch.randn(40, 4).double()
    found = []
    for train in (True, False):
        wrapper = adapters.AdaptedLinear(base)
        wrapper.set_base(weight=base.weight.detach())
        wrapper.set_adapter(A, B, scaling=3.0)
        wrapper.train(train)  # in evaluation mode the operations are composed one by one
        torch.manual_seed(1)
        x = torch.randn(3, 5, 24, dtype=torch.float64, requires_grad=needs_input_gradient)
        y = wrapper(x)
        (y * torch.randn(3, 5, 40, dtype=torch.float64)).sum().backward()
        found.append(
            [y, wrapper.lora_A.grad, wrapper.lora_B.grad, *([x.grad] if needs_input_gradient else [])]
        )
    assert "FusedAdapter" in type(found[0][0].grad_fn).__name__ + str(found[0][0].grad_fn.next_functions)
    for fused, composed in zip(*found, strict=True):
        assert torch.allclose(fused, composed, rtol=1e-12, atol=1e-12)


def test_what_a_trained_linear_gives_can_be_added_to_in_place():
    """As Falcon does."""
    wrapper = adapters.AdaptedLinear(linear(torch.float32, True))
    wrapper.set_base(weight=wrapper.linear.weight.detach())
    wrapper.set_adapter(torch.randn(4, 24), torch.randn(40, 4), scaling=3.0)
    x = torch.randn(3, 5, 24, requires_grad=True)
    y = wrapper.train()(x)
    y += 1
    y.sum().backward()
    assert x.grad is not None and y.shape == (3, 5, 40)


def test_initial_factors_follow_from_the_seed_and_the_name_and_are_spread_as_pefts_are():
    wide = nn.Linear(400, 8)
    A, B = adapters.draw_factors(3, wide, "a", 256)
    # Kaiming-uniform with a = sqrt(5) on fan-in n is uniform within 1/sqrt(n): deviation 1/sqrt(3 n).
    assert float(A.std()) == pytest.approx((3 * 400) ** -0.5, rel=0.02) and float(A.abs().max()) <= 400**-0.5
    assert A.shape == (256, 400) and B.shape == (8, 256) and not B.any()
    for seed, name in ((3, "b"), (4, "a")):
        assert not torch.equal(adapters.draw_factors(seed, wide, name, 256)[0], A)


@pytest.mark.parametrize(("bias", "rank"), [(True, 4), (False, 4), (True, 0)])
def test_scales_of_rows_are_trained_beside_a_plain_weight_as_in_its_module(bias, rank):
    backend = make_backend({"name": "trellis", "L": 10})
    module = backend.quantize(linear(torch.float32, bias), 2, hessian=torch.eye(24))
    found = []
    for base in ({"weight": backend.dequantize(module)}, {"module": module}):
        wrapper = adapters.AdaptedLinear(linear(torch.float32, bias))
        wrapper.set_base(**base)
        trained = wrapper.trained = TrainedScales(backend, backend.get_scales(module), keep=False)
        assert trained.has_one_scale_per_row()
        trained.scale_change.data.copy_(torch.linspace(-0.1, 0.1, 40)[:, None])
        if rank:
            wrapper.set_adapter(
                torch.ones(rank, 24) / 9, torch.linspace(-1, 1, 40 * rank).view(40, rank), 2.0
            )
        x = torch.linspace(-1, 1, 5 * 24).sin().view(5, 24).requires_grad_()
        y = wrapper(x)
        y.square().sum().backward()
        factors = adapters.get_named_factors({"": wrapper}).values()
        found.append([y, x.grad, trained.scale_change.grad, *(p.grad for p in factors)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_linear_whose_scales_are_trained_holds_its_input_only_as_saved():
    backend = make_backend("reference")
    module = backend.quantize(linear(torch.float32), 4)
    trained, x = TrainedScales(backend, backend.get_scales(module), keep=False), torch.ones(5, 24)
    held = weakref.ref(x.untyped_storage())
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: None, lambda nothing: nothing
    ):  # as checkpoints do
        y = trained(x, module)
    del x
    assert held() is None and y.requires_grad
