"""Scales that are trained: gradients by scale and offset are those of the weight written out."""

from __future__ import annotations

import pytest
import torch
from qra_backends import Scales, multiply_scaled
from qra_backends.ggml.decode import decode, replace_block_scales, write_float16
from qra_backends.ggml.types import TYPES
from torch import Tensor


def case(in_features: int = 40, size: int = 16) -> tuple[Tensor, Tensor, Scales]:
    """Inputs, codes and groups, the last one shorter."""
    g = torch.Generator().manual_seed(0)
    count = -(-in_features // size)
    codes = torch.randint(0, 8, (6, in_features), generator=g).double()
    scale, offset = (torch.rand(6, count, generator=g).double() for _ in range(2))
    return torch.randn(2, 5, in_features, generator=g).double(), codes, Scales(scale, offset, size)


def written_out(codes: Tensor, groups: Scales) -> Tensor:
    offset = torch.zeros_like(groups.scale) if groups.offset is None else groups.offset
    scale, offset = (x.repeat_interleave(groups.size, 1)[:, : codes.shape[1]] for x in (groups.scale, offset))
    return scale * codes + offset


@pytest.mark.parametrize("has_offset", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_gradients_are_those_of_the_weight_written_out(keep: bool, has_offset: bool):
    x, codes, groups = case()
    tensors = (x, groups.scale, groups.offset)[: 2 + has_offset]
    leaves, twins = ([t.clone().requires_grad_() for t in tensors] for _ in range(2))
    bias = torch.arange(6.0).double()
    ours, theirs = (Scales(*some[1:], *[None] * (not has_offset), 16) for some in (leaves, twins))
    output = multiply_scaled(leaves[0], ours, lambda g: written_out(codes, g), bias, keep=keep)
    expected = twins[0] @ written_out(codes, theirs).T + bias
    torch.testing.assert_close(output, expected)
    (output**2).sum().backward()
    (expected**2).sum().backward()
    for mine, other in zip(leaves, twins, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_a_group_of_equal_weights_gets_no_gradient_by_its_scale():
    x, codes, groups = case()
    scale = groups.scale.clone()
    scale[:, 0] = 0
    scale.requires_grad_()
    multiply_scaled(x, Scales(scale, groups.offset, 16), lambda g: written_out(codes, g)).sum().backward()
    assert torch.isfinite(scale.grad).all() and not scale.grad[:, 0].any() and scale.grad[:, 1].all()


@pytest.mark.parametrize("kind", TYPES.values(), ids=list(TYPES))
def test_every_block_type_has_its_scale_where_it_is_said_to_be(kind):
    blocks = torch.randint(
        0, 256, (4, kind.block_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    blocks = replace_block_scales(blocks, kind, torch.full((4, 1), 0.25))
    if kind.offset:
        write_float16(blocks, kind.scale_at + 2, torch.full((4, 1), 0.5))
    before = decode(blocks, kind, torch.float64)
    assert before.isfinite().all() and before.any()
    assert torch.equal(
        decode(replace_block_scales(blocks, kind, torch.full((4, 1), 0.75)), kind, torch.float64), 3 * before
    )
