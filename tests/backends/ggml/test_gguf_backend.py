"""Blocks decode to llama.cpp's numbers, and codes by feedback beat llama.cpp's own on the layer's inputs."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from correlated import damped_error, example
from qra_backends import make_backend
from qra_backends.ggml import library
from qra_backends.ggml.decode import decode, read_codes, replace_codes
from qra_backends.ggml.types import TYPES, GGMLType
from torch import Tensor

needs_library = pytest.mark.skipif(
    library.get_missing_reason() is not None, reason=str(library.get_missing_reason())
)


@pytest.mark.parametrize("kind", TYPES.values(), ids=list(TYPES))
def test_any_bytes_decode_to_what_gguf_decodes_them_to(kind: GGMLType) -> None:
    blocks = random_blocks(kind, rows=6)
    wanted = gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind.name])
    assert np.isfinite(wanted).all()
    assert np.array_equal(decode(blocks, kind, torch.float32).numpy(), wanted)
    rounded = torch.from_numpy(wanted).to(torch.bfloat16)
    assert torch.equal(decode(blocks, kind, torch.bfloat16), rounded)


@pytest.mark.parametrize("kind", TYPES.values(), ids=list(TYPES))
def test_sizes_are_those_of_gguf(kind: GGMLType) -> None:
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.name]] == (kind.block, kind.block_bytes)


@pytest.mark.parametrize("kind", [kind for kind in TYPES.values() if kind.planes], ids=lambda kind: kind.name)
def test_codes_can_be_replaced_and_nothing_else_changes(kind: GGMLType) -> None:
    blocks = random_blocks(kind, rows=3).view(-1, kind.block_bytes)
    assert torch.equal(replace_codes(blocks, kind, read_codes(blocks, kind)), blocks)
    codes = torch.randint(0, 2**kind.code_bits, (len(blocks), kind.block), dtype=torch.uint8)
    changed = replace_codes(blocks, kind, codes)
    assert torch.equal(read_codes(changed, kind), codes)
    assert torch.equal(replace_codes(changed, kind, read_codes(blocks, kind)), blocks)


@needs_library
@pytest.mark.parametrize("name", ["IQ4_NL", "Q5_0", "IQ3_XXS", "Q2_K"])
def test_codes_by_feedback_lose_less_of_the_output_than_llama_cpps_own(name: str) -> None:
    (linear, hessian), kind = example(32, 512), TYPES[name]
    own = decode(library.quantize(linear.weight.detach(), kind, hessian.diagonal()), kind, torch.float32)
    backend = make_backend({"name": "gguf", "types": name})
    ours = backend.dequantize(backend.quantize(linear, name, hessian=hessian))
    assert damped_error(ours, linear, hessian).sum() < 0.7 * damped_error(own, linear, hessian).sum()


def test_rows_of_no_whole_blocks_are_refused_with_the_types_that_fit() -> None:
    backend = make_backend({"name": "gguf", "types": ["Q3_K", "Q4_0"]})
    assert (
        backend.unsupported_reason("Q3_K", 8, 576)
        == "Q3_K needs rows that are multiples of 256, got 576, which can be Q4_0"
    )
    assert backend.unsupported_reason("Q4_0", 8, 576) is None


def test_the_identity_of_a_level_does_not_depend_on_what_else_is_chosen() -> None:
    one = make_backend({"name": "gguf", "types": ["Q4_0"]})
    two = make_backend({"name": "gguf", "types": ["Q4_0", "Q8_0"]})
    assert one.identity("Q4_0") == two.identity("Q4_0")


def random_blocks(kind: GGMLType, *, rows: int) -> Tensor:
    """Bytes (rows, 2 blocks) drawn at random, but for the float16 scales, which are finite."""
    blocks = torch.randint(0, 256, (rows * 2, kind.block_bytes), dtype=torch.uint8, generator=generator())
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    for at in halves.get(kind.name, (0, 2) if kind.offset else (0,)):
        scale = torch.randn(rows * 2, generator=generator()).to(torch.float16)
        blocks[:, at : at + 2] = scale.view(torch.uint8).view(-1, 2)
    return blocks.view(rows, -1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
