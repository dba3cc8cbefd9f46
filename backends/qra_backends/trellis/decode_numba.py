"""Decoding on a CPU, compiled by numba when first used: a row at a time, which stays in the cache."""

from __future__ import annotations

import numba
import torch
from torch import Tensor

from qra_backends.reference.blocks import rows_at_once
from qra_backends.trellis.code import TrellisCode, values
from qra_backends.trellis.jit import compiled
from qra_backends.trellis.rotation import signs


def decode_rows(codes: Tensor, factor: Tensor, at: Tensor, code: TrellisCode, block: int, dtype: torch.dtype) -> Tensor:
    """As `decode_torch.decode_rows`, on the host."""
    in_features = codes.shape[1]
    weight = torch.empty(len(at), in_features, dtype=dtype)
    step = max(1, rows_at_once(in_features, codes.device))
    floats = weight if dtype == torch.float32 else torch.empty(min(step, len(at)), in_features)
    starts, sign = code.starts(at).numpy(), signs(in_features, codes.device).numpy()
    for start in range(0, len(at), step):
        own = slice(start, start + step)
        rows = weight[own]
        work = rows if floats is weight else floats[: len(rows)]
        _decode(codes.numpy(), starts[own], values(code.L), factor[own].numpy(), sign, block, work.numpy())
        if work is not rows:
            rows.copy_(work)
    return weight


@compiled
def _decode(codes, starts, values, factor, sign, block, out):  # type: ignore[no-untyped-def]
    last, mask = len(codes) - 1, len(values) - 1
    for row in range(len(starts)):
        first, shift = starts[row] >> 3, starts[row] & 7
        low, middle, high = codes[first], codes[min(first + 1, last)], codes[min(first + 2, last)]
        weights = out[row]
        for i in range(len(weights)):
            word = numba.uint32(low[i]) | numba.uint32(middle[i]) << 8 | numba.uint32(high[i]) << 16
            weights[i] = values[(word >> shift) & mask]
        size = 1
        while size < block:
            for pair in range(0, len(weights), 2 * size):
                for i in range(pair, pair + size):
                    one, other = weights[i], weights[i + size]
                    weights[i], weights[i + size] = one + other, one - other
            size *= 2
        for i in range(len(weights)):
            weights[i] *= factor[row] * sign[i]
