"""Grids: kept where the target holds them, else of least squared error."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from qra_backends import make_backend
from qra_backends.integers import layouts
from torch import nn

from qra_eval.export.gguf_blocks import own_blocks
from qra_eval.export.grids import Affine, affine_of, group_that_divides, integer_grid


def linear(out_features=32, in_features=64, seed=0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(in_features, out_features, bias=False).requires_grad_(False)


@pytest.mark.parametrize(
    "backend, bits", [("reference", 3), ("reference", 8), ("hqq", 2), ("hqq", 3), ("hqq", 4), ("bitsandbytes-int8", 8)]
)
def test_codes_scales_and_offsets_give_the_weight_that_the_backend_dequantizes(backend, bits):
    made = make_backend(backend)
    module = made.quantize(linear(), bits)
    own = affine_of(module)
    weight = own.scale.repeat_interleave(own.group_size, 1) * own.codes + own.offset.repeat_interleave(
        own.group_size, 1
    )
    assert int(own.codes.max()) < 2**bits
    torch.testing.assert_close(weight, made.dequantize(module).float(), rtol=2e-6, atol=2e-7)


def test_unevenly_spaced_levels_are_no_affine_grid():
    assert affine_of(make_backend("bitsandbytes-nf4").quantize(linear(), 4)) is None


def test_a_symmetric_grid_is_kept_whatever_number_its_zero_has():
    codes = torch.randint(1, 8, (4, 32), dtype=torch.uint8)
    scale = torch.rand(4, 1) + 0.5
    own = Affine(codes, scale, -5 * scale, 32)  # zero at code 5; moved by -1 it is at 4
    kept = integer_grid(torch.zeros(4, 32), 3, 16, symmetric=True, scale_dtype=torch.float32, own=own)
    assert kept.same and kept.group_size == 16
    assert torch.equal(kept.zero, torch.full_like(kept.zero, 4))
    torch.testing.assert_close(kept.weight(), scale * (codes.float() - 5))


def test_a_grid_whose_offset_is_no_whole_multiple_is_not_kept():
    scale = torch.ones(2, 1)
    own = Affine(torch.randint(0, 8, (2, 32), dtype=torch.uint8), scale, -3.5 * scale, 32)
    weight = own.codes + own.offset
    for symmetric in (True, False):
        assert not integer_grid(weight, 3, 32, symmetric=symmetric, scale_dtype=torch.float32, own=own).same


def test_a_scale_that_the_target_would_round_is_not_kept():
    scale = torch.full((2, 1), 0.1)
    own = Affine(torch.randint(1, 8, (2, 32), dtype=torch.uint8), scale, -4 * scale, 32)
    args = {"symmetric": True, "own": own}
    assert integer_grid(scale * (own.codes - 4.0), 3, 32, scale_dtype=torch.float32, **args).same
    assert not integer_grid(scale * (own.codes - 4.0), 3, 32, scale_dtype=torch.bfloat16, **args).same


@pytest.mark.parametrize("bits", [2, 3])
def test_the_squared_error_is_near_the_least_that_any_symmetric_grid_has(bits):
    """Against a fine search over scales of both signs, group by group."""
    weight = linear(8, 16).weight
    found = integer_grid(weight, bits, 16, symmetric=True, scale_dtype=torch.float32)
    half = 2 ** (bits - 1)
    for row, mine in zip(weight, found.weight(), strict=True):
        scales = row.abs().max() * torch.linspace(-2, 2, 4001)
        codes = (row / torch.where(scales == 0, 1.0, scales)[:, None]).round().clamp(-half, half - 1)
        best = ((codes * scales[:, None] - row) ** 2).sum(1).min()
        assert ((mine - row) ** 2).sum() <= 1.15 * best


@pytest.mark.parametrize("symmetric, bits", list(itertools.product([True, False], [2, 3, 4, 8])))
def test_codes_and_zeros_stay_in_range_and_more_bits_lose_less(symmetric, bits):
    weight = linear().weight
    error = {}
    for b in (bits, min(8, bits + 1)):
        grid = integer_grid(weight, b, 32, symmetric=symmetric, scale_dtype=torch.float16)
        assert int(grid.codes.max()) < 2**b and int(grid.zero.min()) >= 1 and int(grid.zero.max()) < 2**b
        error[b] = float((grid.weight() - weight).square().mean())
    assert error[bits] >= error[min(8, bits + 1)]


def test_groups_halve_until_they_divide_the_row():
    assert [group_that_divides(n, 64) for n in (576, 96, 48, 50)] == [64, 32, 16, 50]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_words_hold_each_code_at_its_bits(bits):
    """Compressed-tensors along a row, GPTQ down a column: code i lies in bits [i·b, (i+1)·b) of the stream."""
    grid = integer_grid(linear(32, 64).weight, bits, 32, symmetric=False, scale_dtype=torch.float16)
    words, zero = layouts.words_of(grid.codes, bits), grid.zero.float()
    packed = layouts.compressed_tensors(words, grid.scale, zero, bits, 64)
    gptq = layouts.gptq_tensors(words, grid.scale, zero, bits, shift=1)

    def codes_in(words: list[int], count: int) -> list[int]:
        stream = sum((word % 2**32) << (32 * i) for i, word in enumerate(words))
        return [(stream >> (bits * i)) % 2**bits for i in range(count)]

    for row in (0, 31):
        assert codes_in(packed["weight_packed"][row].tolist(), 64) == grid.codes[row].tolist()
        assert codes_in(gptq["qweight"][:, row].tolist(), 64) == grid.codes[row].tolist()
    assert codes_in(gptq["qzeros"][1].tolist(), 32) == (grid.zero[:, 1] - 1).tolist()
    assert codes_in(packed["weight_zero_point"][:, 1].tolist(), 32) == grid.zero[:, 1].tolist()


@pytest.mark.parametrize("backend, bits, kind", [("reference", 3, "Q4_1"), ("bitsandbytes-int8", 8, "Q8_0")])
def test_gguf_dequantizes_a_layers_own_blocks_to_its_weight(backend, bits, kind):
    from gguf import GGMLQuantizationType, dequantize

    made = make_backend(backend)
    module = made.quantize(linear(), bits)
    data, found = own_blocks(affine_of(module))
    assert found == kind
    weight = torch.from_numpy(dequantize(data, GGMLQuantizationType[kind]))
    exact = {"rtol": 0, "atol": 0} if backend == "reference" else {"rtol": 1e-3, "atol": 0}
    torch.testing.assert_close(weight, made.dequantize(module).float(), **exact)


def tensors_of(grid: Any) -> dict[str, torch.Tensor]:
    """In GPTQ's second format."""
    return layouts.gptq_tensors(layouts.words_of(grid.codes, grid.bits), grid.scale, grid.zero.float(), grid.bits)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_layer_of_gptqmodel_is_written_again_as_the_integers_that_it_holds(bits):
    weight = linear().weight.detach()
    grid = integer_grid(weight, bits, 32, symmetric=False, scale_dtype=torch.float16)
    tensors = tensors_of(grid)

    class GPTQLinear(nn.Module):  # readers go by the name: the library need not be there
        pass

    layer = GPTQLinear()
    layer.bits = bits
    for name, tensor in tensors.items():
        layer.register_buffer(name, tensor)
    again = integer_grid(weight, bits, 32, symmetric=False, scale_dtype=torch.float16, own=affine_of(layer))
    assert again.same and all(torch.equal(tensors_of(again)[name], tensors[name]) for name in tensors)
    layer.g_idx = layer.g_idx.flip(0)
    assert affine_of(layer) is None
