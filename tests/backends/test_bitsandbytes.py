"""Weights are those that bitsandbytes makes, and its silent faults reach no result."""

from __future__ import annotations

import pytest
import torch
from qra_backends import count_live_bytes, make_backend
from qra_backends.conformance import make_linear as gaussian_linear
from qra_backends.libraries import bitsandbytes
from torch import nn

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
from bitsandbytes.nn.modules import has_avx512bf16  # noqa: E402


def source(*shape: int) -> nn.Linear:
    return gaussian_linear(shape, torch.bfloat16)


@pytest.mark.skipif(not has_avx512bf16(), reason="seen only on a build for AVX512")
def test_blocks_that_cross_rows_are_still_dequantized_wrongly_by_the_library():
    """Fails once bitsandbytes mends it: blocks need not divide the row then."""
    weight = source(192, 576).weight.data
    packed, state = bnb.functional.quantize_4bit(weight, blocksize=128, quant_type="nf4")
    by_kernel = bnb.functional.dequantize_4bit(packed, state).float()
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 0xF], dim=1).flatten()
    by_formula = (state.code[codes.long()].view(-1, 128) * state.absmax[:, None]).view(192, 576)
    assert (by_formula - weight.float()).norm() < 0.11 * weight.float().norm()
    assert (by_kernel - weight.float()).norm() > 0.15 * weight.float().norm()


@pytest.mark.parametrize(
    ("in_features", "blocksize", "block"),
    [(576, 64, 64), (576, 128, 64), (192, 256, 64), (96, 64, 32), (512, 128, 128)],
)
def test_the_largest_block_that_divides_the_row_is_used(in_features: int, blocksize: int, block: int):
    backend = make_backend({"name": "bitsandbytes", "blocksize": blocksize})
    linear = source(64, in_features)
    layer = backend.quantize(linear, 4)
    assert layer.blocksize == block
    assert count_live_bytes(layer) == 32 * in_features + 4 * 64 * in_features // block + 64
    assert (backend.dequantize(layer) - linear.weight).float().norm() < 0.11 * linear.weight.float().norm()


def test_rows_that_no_block_divides_are_refused_with_the_ways_on():
    backend = make_backend("bitsandbytes")
    reason = backend.unsupported_reason(4, 64, 100)
    assert reason and "multiple of 32, got 100" in reason and "reference" in reason
    assert backend.unsupported_reason(8, 64, 100) is None
    with pytest.raises(ValueError, match="multiple of 32"):
        backend.quantize(source(64, 100), 4)


def test_bytes_are_the_formula_of_blocks_and_tables():
    count, blocks = 576 * 192, 576 * 3
    assert make_backend("bitsandbytes").storage(4).bytes(576, 192) == count // 2 + 4 * blocks + 64
    double = make_backend({"name": "bitsandbytes", "double_quant": True}).storage(4)
    assert double.bytes(576, 192) == count // 2 + blocks + 4 * 7 + 64 + 1024 + 4
    assert make_backend("bitsandbytes-int8").storage(8).bytes(576, 192) == count + 4 * 576


def test_int8_refuses_a_weight_that_is_no_number_in_half_precision():
    linear = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    linear.weight.data[3, 5] = 70000
    with pytest.raises(ValueError, match="a weight is above 65504, the largest value of this 8-bit format"):
        make_backend("bitsandbytes").quantize(linear, bits=8)


def test_int8_is_what_the_library_computes_in_train_mode():
    linear, x = source(192, 576), torch.randn(64, 576).bfloat16()
    layer = bnb.nn.Linear8bitLt(576, 192, bias=False, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(linear.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
    ours = make_backend("bitsandbytes").quantize(linear, 8).eval()
    with torch.no_grad():
        assert torch.equal(ours(x), layer.to("cpu").train()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_decoded_in_slices_of_any_size_is_the_product_rounded_once(
    dtype, monkeypatch: pytest.MonkeyPatch
):
    module = make_backend("bitsandbytes-int8").quantize(source(37, 64), 8)
    stored = module.tensors()
    expected = (stored["codes"].float() * (stored["scale"][:, None] / 127)).to(dtype)
    for at_once in (1, 64 * 5, 1 << 20):
        monkeypatch.setattr(bitsandbytes, "NUMBERS_AT_ONCE", at_once)
        assert torch.equal(module.dequantize(dtype), expected)


def test_four_bits_are_what_the_library_dequantizes():
    linear, backend = source(192, 576), make_backend("bitsandbytes")
    ours = backend.dequantize(backend.quantize(linear, 4))
    packed, state = bnb.functional.quantize_4bit(linear.weight.data, blocksize=64, quant_type="nf4")
    assert torch.equal(ours, bnb.functional.dequantize_4bit(packed, state))


@pytest.mark.parametrize("double_quant", [False, True])
def test_rows_of_a_table_are_decoded_alone(double_quant: bool, monkeypatch: pytest.MonkeyPatch):
    backend = make_backend({"name": "bitsandbytes", "double_quant": double_quant})
    module, at = backend.quantize(source(300, 576), 4), torch.tensor([299, 0, 7, 7])
    whole = backend.dequantize(module)
    monkeypatch.setattr(bitsandbytes.NF4Linear, "dequantize", None)
    assert torch.equal(backend.dequantize_rows(module, at), whole[at])
