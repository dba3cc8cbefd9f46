"""Counts the bytes of all tensors that operations make, as they live and die."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryCounter(TorchDispatchMode):
    """Bytes of all tensors that operations make within the context, each storage once, until it is freed.

    Tensors that were there before do not count, nor do views of them; `peak` is the most that lived at once.
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
