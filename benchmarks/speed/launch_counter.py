"""Counts what a decoder layer launches on the pretended GPU: kernels of torch, and ours, which are not run for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from pretended_gpu import CUDA, place, pretended_gpu
from qra_backends import Backend, backend_names, make_backend
from qra_backends.base import Level
from qra_backends.ggml.types import TYPES
from tiny_families import tiny_config_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

from qra_eval.quantized import adapters
from qra_eval.quantized.adapters import TrainedScales

HIDDEN, RANK = 256, 4  # every type of llama.cpp takes rows of 256
SAME = ("mixed", "reference-gptq")
"""Backends whose modules are those of others."""
WITHOUT_KERNEL = {
    "_has_compatible_shallow_copy_type",
    "_local_scalar_dense",
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "is_same_size",
    "lift_fresh",
    "new_empty",
    "new_empty_strided",
    "resize_",
}
"""Operations that launch nothing, beside views."""


class Launches(TorchDispatchMode):
    """What is launched on the device for as long as the context lasts.

    Attributes:
        by_name: launches of each operation.
        bytes: read and written; a tensor's memory is counted once an operation.
    """

    def __enter__(self) -> Launches:
        self.by_name: Counter[str] = Counter()
        self.bytes = 0
        self._patch = mock.patch.object(
            GridExecutor,
            "__call__",
            lambda executor, *args, **named: self.add(executor.fn.__name__, [args, named]),
        )
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
            self.add(name, [args, kwargs, made])
        return made

    def add(self, name: str, given: Any) -> None:
        """Count an operation if one of its tensors is on the device."""
        tensors = [t for t in tree_leaves(given) if isinstance(t, Tensor) and place(t) == CUDA]
        self.by_name[name] += bool(tensors)
        self.bytes += sum({(t.data_ptr(), t.nbytes): t.nbytes for t in tensors}.values())

    @property
    def count(self) -> int:
        return sum(self.by_name.values())


def levels() -> Iterator[tuple[str, Backend, Level]]:
    """Every level that modules differ in, with its name and backend."""
    for name in backend_names():
        backend = make_backend({"name": "gguf", "types": list(TYPES)} if name == "gguf" else name)
        if name not in SAME and not backend.unavailable_reason():
            yield from ((f"{name} {bits}", backend, bits) for bits in backend.bits)


def module_of(backend: Any, bits: Level, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    """A quantized linear on the device; what it holds does not matter."""
    if backend.library == "bitsandbytes":  # it looks at its table of levels
        made = backend.quantize(nn.Linear(HIDDEN, HIDDEN, bias=False, dtype=dtype), bits)
        tensors = {name: tensor.to("cuda") for name, tensor in backend.to_tensors(made).items()}
    else:
        form = backend.describe_tensors(bits, HIDDEN, HIDDEN)
        tensors = {
            name: torch.zeros(shape, dtype=kind, device="cuda") for name, (shape, kind) in form.items()
        }
    return backend.from_tensors(tensors, bits=bits, out_features=HIDDEN, in_features=HIDDEN, dtype=dtype)


def dequantizing(module: Any) -> Launches:
    """What making its weight launches, after a first time that makes the tables which a kernel reads."""
    for _ in range(2):
        with Launches() as launches:
            module.dequantize()
    return launches


@contextmanager
def counted_layer(*, kernels: bool = True) -> Iterator[Any]:
    """Gives a function that counts what a decoder layer of Llama launches, forward and backward, with adapters.

    It takes a backend, a level, and whether scales are trained.
    """
    model = tiny_config_model(
        "llama",
        layers=1,
        hidden=HIDDEN,
        intermediate_size=HIDDEN,
        head_dim=64,
        num_key_value_heads=4,
        vocabulary=16,
    )
    model = model.to(torch.bfloat16)
    layer, calls = model.model.layers[0], []
    names = [name for name, linear in layer.named_modules() if isinstance(linear, nn.Linear)]
    wrappers = adapters.wrap_linears(layer, names).values()
    with pretended_gpu(), mock.patch("qra_backends.kernels.are_kernels_usable", lambda device: kernels):
        for wrapper in wrappers:
            wrapper.set_adapter(
                torch.zeros(RANK, HIDDEN, device="cuda"), torch.zeros(HIDDEN, RANK, device="cuda"), 0.5
            )
        model.to("cuda").train()
        layer.register_forward_pre_hook(lambda _, args, named: calls.append((args, named)), with_kwargs=True)
        with torch.no_grad():
            model(input_ids=torch.zeros(2, 8, dtype=torch.long, device="cuda"), use_cache=False)
        (hidden, *args), named = calls[0]

        def count(backend: Backend, bits: Level, *, scales: bool = False) -> Launches:
            module = module_of(backend, bits)
            for wrapper in wrappers:
                wrapper.set_base(module=module)
                groups = backend.get_scales(module) if scales else None
                wrapper.trained = None if groups is None else TrainedScales(backend, groups, keep=False)
            for parameter in layer.parameters():  # an earlier micro-batch's gradients are there
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            dequantizing(module)
            with Launches() as launches:
                out = layer(hidden.detach().requires_grad_(), *args, **named)
                (out[0] if isinstance(out, tuple) else out).backward(hidden)
            return launches

        yield count
