"""A weight to codes: each column of the rotated weight is rounded as one path, and its error fed back to the rest.

As in GPTQ (arXiv 2210.17323), which rounds the weights of a column one by one. A column runs along the outputs, so a
path can weigh each row's error by what an error of that output costs.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qra_backends import kernels
from qra_backends.reference.gptq import Factor
from qra_backends.storage import choose_block_rows
from qra_backends.trellis import viterbi
from qra_backends.trellis.code import VALUE_UNIT, TrellisCode, make_signs, pack, rotate_by_torch
from qra_backends.trellis.decode_numba import rotate
from qra_backends.trellis.linear import SCALE_DTYPE, decode_values

_BLOCK = 64  # columns whose feedback is applied one by one before the rest of the weight is updated at once
_WIDER = {2: 0.9, 3: 0.96, 4: 1.0, 5: 1.0, 6: 1.02}
_WIDEST = 1.04
"""Scale to begin with, over a row's root mean square, by bits times two: the least squared error of a Gaussian."""


def encode(
    weight: Tensor,
    code: TrellisCode,
    block: int,
    hessian: Tensor,
    factor: Factor,
    output_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """The streams of all columns, and the scale of each row.

    Args:
        weight: (out, in), on a device of `choose_device`.
        block: inputs that are rotated together.
        hessian: float32 (in, in), of the rotated inputs, damped.
        factor: of the same.
        output_weights: float32 (out,), of each row's squared error; None: all the same.

    Returns:
        `codes` uint8 (bytes of a stream, in), `scale` float16 (out, 1).
    """
    out_features, in_features = weight.shape
    step = choose_block_rows(in_features, weight.device)
    parts = [slice(start, start + step) for start in range(0, out_features, step)]
    # Columns in the order of rounding.
    columns = torch.empty(in_features, out_features, dtype=torch.float32, device=weight.device)
    scale = torch.empty(out_features, dtype=torch.float32, device=weight.device)
    for part in parts:
        rows = rotate_rows(weight[part].float(), block)
        scale[part] = rows.square().mean(1).sqrt_().mul_(_WIDER.get(code.half_bits, _WIDEST))
        columns[:, part] = rows.T[factor.order]
    scale = _round_to_stored(scale)
    # An error of the multiplied row, squared, is the row's own times its weight.
    root = 1.0 if output_weights is None else output_weights.sqrt()
    codes = encode_columns(columns.mul_(root), code, scale * root, factor)
    del columns
    for part in parts:
        at = torch.arange(out_features, device=weight.device)[part]
        unscaled = decode_values(codes, at, code).float().mul_(VALUE_UNIT)
        pull = unscaled @ hessian
        power = (pull * unscaled).sum(1)
        fitted = _round_to_stored((pull * rotate_rows(weight[part].float(), block)).sum(1) / power)
        scale[part] = torch.where(power > 0, fitted, scale[part])
    return {"codes": codes, "scale": scale[:, None].to(SCALE_DTYPE)}


def encode_columns(columns: Tensor, code: TrellisCode, scale: Tensor, factor: Factor) -> Tensor:
    """Streams uint8 (bytes, in) of columns float32 (in, out), which lie in the factor's order and are used up, under
    scales float32 (out,)."""
    in_features, out_features = columns.shape
    codes = columns.new_empty(code.stream_bytes(out_features), in_features, dtype=torch.uint8)
    for start in range(0, in_features, _BLOCK):
        own = slice(start, min(start + _BLOCK, in_features))
        block, inverse = columns[own], factor.upper[own, own].contiguous()
        states, errors = torch.empty_like(block, dtype=torch.int32), torch.empty_like(block)
        if columns.is_cuda:
            from qra_backends.trellis.viterbi_triton import round_columns  # triton is there on a GPU only

            round_columns(block, inverse, scale, code, states, errors)
        else:
            host = (tensor.numpy() for tensor in (block, inverse, scale, states, errors))
            viterbi.round_columns(*host, viterbi.make_layout(code))
        codes[:, factor.order[own]] = pack(states.T, code)
        columns[own.stop :].addmm_(factor.upper[own, own.stop :].T, errors, alpha=-1)
    return codes


def rotate_rows(rows: Tensor, block: int) -> Tensor:
    """`code.rotate_by_torch` of rows (n, in), compiled on a CPU: eight times as quick there."""
    if rows.device.type != "cpu":
        return rotate_by_torch(rows, block)
    made = rows.clone(memory_format=torch.contiguous_format)
    signs = make_signs(rows.shape[-1], rows.device)
    rotate(made.numpy(), signs.numpy(), np.float32(1 / math.sqrt(block)), block)
    return made


def choose_device(weight: Tensor) -> torch.device:
    """Where a weight is quantized: on its GPU if there is a compiler for it, else on the host."""
    return weight.device if kernels.are_kernels_usable(weight.device) else torch.device("cpu")


def _round_to_stored(scale: Tensor) -> Tensor:
    """Scales as they are read back, in float32."""
    return scale.clamp(max=torch.finfo(SCALE_DTYPE).max).to(SCALE_DTYPE).float()
