"""Counts the bytes of all tensors that operations make, on real tensors and on such as have a shape and no values."""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import Any

import torch
from qra_backends import Backend
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qra_search.schemas import LevelName

DEQUANTIZE_BYTES = 5
"""Bytes for each weight while it is dequantized, beside the result: its code, and its value in float32."""


class MemoryCounter(TorchDispatchMode):
    """Bytes of all tensors that operations make within the context, each storage once, until it is freed.

    Tensors that were there before do not count, nor do views of them.

    Attributes:
        bytes: that live now.
        peak: the most that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()
        self._before: list[Any] = []

    def exclude(self, *tensors: Tensor) -> None:
        """Do not count these tensors, which were allocated before."""
        self._before += [tensor.untyped_storage() for tensor in tensors]
        self._known |= {storage._cdata for storage in self._before[-len(tensors) :]}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                self.exclude(leaf)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not isinstance(leaf, Tensor):
                continue
            storage = leaf.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.bytes += size
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._record_freed, key, size)
        return out

    def _record_freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size


@lru_cache
def count_decoding_bytes(
    backend: Backend, levels: tuple[LevelName, ...], out_features: int, in_features: int, rows: int = 0
) -> int:
    """Bytes that dequantizing takes beside the weight that it gives, at the level that takes most.

    Of a GPU, by torch's own operations: our kernels, which need a compiler, take none.

    Args:
        rows: of the weight that are asked for at once, as for a table; 0: all of it.
    """
    sizes = [0] if levels else [DEQUANTIZE_BYTES * (rows or out_features) * in_features]
    for bits in levels:
        if backend.unsupported_reason(bits, out_features, in_features) is not None:
            continue
        form = backend.list_tensor_specs(bits, out_features, in_features)
        tensors = {
            name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in form.items()
        }
        module = backend.from_tensors(tensors, bits=bits, out_features=out_features, in_features=in_features)
        with MemoryCounter() as meter, torch.no_grad():
            at = torch.empty(rows, dtype=torch.long, device="meta")
            made: Tensor = backend.dequantize_rows(module, at) if rows else backend.dequantize(module)
        sizes.append(meter.peak - made.nbytes)
    return max(sizes)
