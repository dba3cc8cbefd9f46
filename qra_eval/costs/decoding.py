"""What dequantizing takes beside the weight that it gives, counted on tensors that have a shape and hold nothing."""

from __future__ import annotations

from functools import lru_cache

import torch
from qra_backends import Backend
from torch import Tensor

from qra_eval.costs.meter import Meter
from qra_eval.costs.sketch import DEQUANTIZE_BYTES
from qra_search.space.levels import LevelName


@lru_cache
def decoding_bytes(
    backend: Backend, levels: tuple[LevelName, ...], out_features: int, in_features: int, rows: int = 0
) -> int:
    """At the level that takes most, on a GPU, by torch's own operations: our kernels, which need a compiler, take none.

    A backend that cannot be asked without values is taken to make its codes and their floats.

    Args:
        rows: of the weight that are asked for at once, as for a table; 0: all of it.
    """
    sizes = [0] if levels else [DEQUANTIZE_BYTES * (rows or out_features) * in_features]
    for bits in levels:
        if backend.supports(bits, out_features, in_features) is None:
            sizes.append(_counted(backend, bits, out_features, in_features, rows))
    return max(sizes)


def _counted(backend: Backend, bits: LevelName, out_features: int, in_features: int, rows: int) -> int:
    form = backend.expected(bits, out_features, in_features)
    if form is None:
        return DEQUANTIZE_BYTES * (rows or out_features) * in_features
    tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in form.items()}
    module = backend.from_tensors(tensors, bits=bits, out_features=out_features, in_features=in_features)
    with Meter() as meter, torch.no_grad():
        at = torch.empty(rows, dtype=torch.long, device="meta")
        made: Tensor = backend.rows(module, at) if rows else backend.dequantize(module)
    return meter.peak - made.nbytes
