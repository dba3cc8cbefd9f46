"""Counts the bytes of all tensors that operations make, on real tensors and on those of a sketch."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Meter(TorchDispatchMode):
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

    def ignore(self, *tensors: Tensor) -> None:
        """These were there before."""
        self._before += [tensor.untyped_storage() for tensor in tensors]
        self._known |= {storage._cdata for storage in self._before[-len(tensors) :]}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self._known:
                self.ignore(leaf)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._made(leaf)
        return out

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size
