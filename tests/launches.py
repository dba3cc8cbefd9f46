"""Counts what is launched on the pretended GPU: kernels of torch, by operation, and ours, which are interpreted."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest import mock

from pretended_gpu import CUDA, place
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

WITHOUT_KERNEL = {
    "_has_compatible_shallow_copy_type", "_local_scalar_dense", "_unsafe_view", "empty", "empty_like", "empty_strided",
    "is_same_size", "lift_fresh", "new_empty", "new_empty_strided", "resize_",
}  # fmt: skip
"""Operations that launch nothing, beside views."""


class Launches(TorchDispatchMode):
    """Counts launches on the device, and the bytes that they read and write, for as long as the context lasts.

    Attributes:
        by_name: launches of each operation.
        bytes: of tensors on the device that operations were given or made, each counted once an operation.
    """

    def __enter__(self) -> Launches:
        self.by_name: Counter[str] = Counter()
        self.bytes = 0
        run, counted = GridExecutor.__call__, self

        def launch(executor: Any, *args: Any, **kwargs: Any) -> None:
            counted._count(f"triton {executor.fn.__name__}", [*args, *kwargs.values()])
            with _disable_current_modes():
                run(executor, *args, **kwargs)

        self._patch = mock.patch.object(GridExecutor, "__call__", launch)
        self._patch.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        returns, name = func._schema.returns, func._schema.name.partition("::")[2]
        alias = returns[0].alias_info if returns else None
        if name not in WITHOUT_KERNEL and (alias is None or alias.is_write):
            self._count(name, [args, kwargs, made])
        return made

    def _count(self, name: str, given: Any) -> None:
        tensors = {(t.data_ptr(), t.nbytes) for t in tree_leaves(given) if isinstance(t, Tensor) and place(t) == CUDA}
        if tensors:
            self.by_name[name] += 1
            self.bytes += sum(size for _, size in tensors)

    @property
    def count(self) -> int:
        return sum(self.by_name.values())
