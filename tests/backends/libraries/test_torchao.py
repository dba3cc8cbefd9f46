"""torchao's int8 and nf4 are stored as such, and what it would store in eight bits anyway is refused."""

from __future__ import annotations

import pytest
import torch
from qra_backends import Backend, live_bytes
from qra_backends.conformance import BackendConformance
from qra_backends.libraries.torchao import TorchAOBackend
from torch import nn

try:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
except ImportError:
    quantize_ = None

needs_torchao = pytest.mark.skipif(quantize_ is None, reason="torchao is not installed (an optional extra)")


class TestTorchAO(BackendConformance):
    @pytest.fixture(params=[{}, {"group_size": 64}], ids=str)
    def backend(self, request: pytest.FixtureRequest) -> Backend:
        return TorchAOBackend(**request.param)


@pytest.mark.parametrize("bits", [2, 3, 5, 6, 7])
def test_fewer_bits_are_refused_with_the_reason(bits: int):
    reason = TorchAOBackend().supports(bits, 64, 64)
    assert reason and "one in each byte" in reason and "hqq" in reason


@needs_torchao
def test_the_library_still_keeps_one_small_integer_in_each_byte():
    """Fails once torchao packs them: the refusal can then go."""
    layer = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    quantize_(layer, IntxWeightOnlyConfig(weight_dtype=torch.int2, granularity=PerGroup(64)))
    assert live_bytes(layer) >= 64 * 64


@needs_torchao
def test_it_is_what_the_library_makes_of_a_model():
    from torchao.quantization import Int8WeightOnlyConfig

    torch.manual_seed(0)
    linear, x = nn.Linear(576, 192, dtype=torch.bfloat16), torch.randn(5, 576).bfloat16()
    ours = TorchAOBackend().quantize(linear, 8)
    quantize_(linear, Int8WeightOnlyConfig())
    assert torch.equal(ours(x), linear(x))


@needs_torchao
def test_nf4_is_what_the_library_makes_of_the_weight():
    from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

    torch.manual_seed(0)
    linear = nn.Linear(512, 256, bias=False)  # 2,048 scales, as the library's default wants them: multiples of 256
    backend = TorchAOBackend()
    assert torch.equal(
        backend.dequantize(backend.quantize(linear, 4)), to_nf4(linear.weight.detach()).get_original_weight()
    )


@needs_torchao
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_nf4_of_equal_weights_is_exact_where_the_library_divides_by_zero(value: float):
    linear = nn.Linear(64, 64, bias=False)
    nn.init.constant_(linear.weight, value)
    backend = TorchAOBackend()
    assert torch.equal(backend.dequantize(backend.quantize(linear, 4)), linear.weight)


@pytest.mark.parametrize(
    ("shape", "fits"), [((576, 576), True), ((192, 576), True), ((7, 64), False), ((8, 20), False)]
)
def test_nf4_refuses_shapes_that_its_blocks_do_not_divide(shape: tuple[int, int], fits: bool):
    reason = TorchAOBackend().supports(4, *shape)
    assert (reason is None) if fits else "bitsandbytes-nf4" in reason


@needs_torchao
def test_packed_integers_of_four_bits_have_still_no_gradient():
    """Fails once torchao can tune below its int4 layers on a CPU: they can then be offered beside nf4."""
    from torchao.prototype.quantization.int4.int4_opaque_tensor import Int4OpaqueTensor

    weight = Int4OpaqueTensor.from_hp(torch.randn(64, 128), [1, 64])
    x = torch.randn(3, 128, requires_grad=True)
    with pytest.raises(RuntimeError, match="derivative for aten::_weight_int4pack_mm_for_cpu is not implemented"):
        nn.functional.linear(x, weight).sum().backward()


def test_groups_that_do_not_divide_the_row_are_refused():
    assert "divide the input features, got 100" in TorchAOBackend(group_size=64).supports(8, 64, 100)
    assert TorchAOBackend().supports(8, 64, 100) is None
    with pytest.raises(ValueError, match="positive integer or None"):
        TorchAOBackend(group_size=0)


def test_without_the_library_it_says_so():
    reason = TorchAOBackend().unavailable()
    assert (reason is None) if quantize_ else "pip install torchao" in reason
