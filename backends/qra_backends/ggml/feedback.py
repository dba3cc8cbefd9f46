"""Blocks whose codes are chosen by error feedback on the layer's inputs, with the scales that llama.cpp would give.

GPTQ (arXiv 2210.17323) in the order of blocks: llama.cpp fits a block's scales to the weights as the blocks before have
left them, with the importance matrix; its codes are then chosen column by column, each making up for the errors before
it, and what is left is passed to the blocks to come. The vectors of a codebook stay as llama.cpp chose them; only what
the whole block lost is passed on. Blocks, and columns within a block, go from the largest mean squared input to the
smallest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qra_backends.ggml import library
from qra_backends.ggml.decode import decode, read_scales, replace_codes
from qra_backends.ggml.types import GGMLType, load_iq4_values
from qra_backends.reference.gptq import Factor, round_columns

_PART = 32
"""Columns whose feedback is applied one by one before the rest of the block is updated at once."""


def order_columns(importance: Tensor, block: int) -> Tensor:
    """Columns (in,) block after block, each by falling importance (in,)."""
    parts = importance.view(-1, block)
    first = parts.sum(1).argsort(descending=True)
    within = parts[first].argsort(dim=1, descending=True)
    return (first[:, None] * block + within).view(-1)


def encode(weight: Tensor, kind: GGMLType, importance: Tensor, factor: Factor) -> Tensor:
    """Blocks uint8 (out, bytes of a row) of a float32 weight (out, in).

    `importance` (in,) is the Hessian's diagonal, and `factor` the Hessian's, its columns in `order_columns`.
    """
    order, upper = factor
    out_features, in_features = weight.shape
    columns = weight.T[order].contiguous()
    blocks = torch.empty(
        out_features, in_features // kind.block, kind.block_bytes, dtype=torch.uint8, device=weight.device
    )
    for start in range(0, in_features, kind.block):
        stop = start + kind.block
        number = int(order[start]) // kind.block
        within = order[start:stop] - number * kind.block
        current, inverse = columns[start:stop], upper[start:stop, start:stop]
        natural = torch.empty_like(current)
        natural[within] = current
        own = importance[number * kind.block : (number + 1) * kind.block]
        made = library.quantize(natural.T, kind, own)
        if kind.planes:
            made, errors = _round_columns(current, made, kind, within, inverse)
        else:
            lost = current - decode(made, kind, torch.float32)[:, within].T
            errors = torch.linalg.solve_triangular(inverse.T, lost, upper=False)
        blocks[:, number] = made
        columns[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1)
    return blocks.view(out_features, -1)


def _round_columns(
    columns: Tensor, blocks: Tensor, kind: GGMLType, within: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor]:
    """The blocks (out, bytes) with codes by feedback, and the errors (block, out) to pass on.

    Args:
        columns: (block, out), in the order of rounding; used up.
        within: place of each in the block.
        inverse: (block, block) of the factor.
    """
    scale, offset = read_scales(blocks, kind)
    if offset is None:
        offset = -kind.zero * scale
    scale, offset = scale.T.contiguous(), offset.T.contiguous()
    values = None if kind.even else load_iq4_values(columns.device)
    groups, highest = within // kind.group, 2**kind.code_bits - 1
    codes, errors = torch.empty_like(columns, dtype=torch.uint8), torch.empty_like(columns)
    for start in range(0, kind.block, _PART):
        own = slice(start, start + _PART)
        part = columns[own], inverse[own, own], groups[own]
        codes[within[own]], errors[own] = round_columns(*part, scale, offset, highest, values)
        columns[own.stop :].addmm_(inverse[own, own.stop :].T, errors[own], alpha=-1)
    return replace_codes(blocks, kind, codes.T.contiguous()), errors
