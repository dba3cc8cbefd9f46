"""Generation as fast as in 16 bits: a token asks for every weight, and to dequantize it each time is slow.

The weights stay dequantized from the first call on. PEFT's own forward takes as long as the products of its factors, so
the same products are made without it, in the same order: what is generated is the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, MutableMapping
from contextlib import contextmanager
from itertools import chain
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft.tuners.lora.layer import LoraLayer
from qra_backends.base import Backend
from torch import Tensor, nn
from torch.nn import functional as F

from qra_eval.models.embeddings import TableEmbedding, TableHead
from qra_eval.quantized.model import count_cache_bytes

Forward = Callable[[Tensor], Tensor]
Weights = MutableMapping[nn.Module, Tensor]


def cache_weights_in_generate(model: Any, backend: Backend, names: Collection[str], cache: int | str = "auto") -> None:
    """Have `generate` of a loaded model multiply by dequantized weights, which are kept from its first call on.

    Args:
        names: of the linears that the backend has quantized; tables are found.
        cache: bytes for dequantized weights (`2GiB`, 0), or `auto`: of what is free. If they do not hold all, weights
            are dequantized for every token.
    """
    kept: Weights = WeakKeyDictionary()

    def generate(self: Any, *args: Any, **options: Any) -> Any:
        with cache_weights(self, backend, names, kept, cache):
            return type(self).generate(self, *args, **options)

    model.generate = MethodType(generate, model)  # a copy of the model is bound to itself


@contextmanager
def cache_weights(
    model: Any, backend: Backend, names: Collection[str], kept: Weights, cache: int | str
) -> Iterator[None]:
    """Multiply by dequantized weights while the context lasts; as before if they do not fit."""
    modules = [model.get_submodule(name) for name in names]
    linears = [getattr(module, "base_layer", module) for module in modules]  # below an adapter of PEFT
    linears = [linear for linear in linears if type(linear) is not nn.Linear]  # merged since
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(end.table): end.table for end in ends if isinstance(end, TableEmbedding | TableHead)}
    taken = [table for table in tables.values() if table.module is not None and table.plain is None]
    dtype = model.dtype
    places = {module: next(chain(module.buffers(), module.parameters())).device for module in (*linears, *taken)}
    lacking = [m for m, place in places.items() if m not in kept or (kept[m].dtype, kept[m].device) != (dtype, place)]
    count = sum(m.shape[0] * m.shape[1] if m in taken else m.out_features * m.in_features for m in lacking)
    if count * dtype.itemsize > count_cache_bytes(cache, model.device):
        yield
        return
    fast: list[nn.Module] = [*linears]
    try:
        with torch.no_grad():
            for module in lacking:
                kept[module] = (module.weight if module in taken else backend.dequantize(module)).to(dtype)
        for linear in linears:
            linear.forward = _product(kept[linear], linear.bias)
        for table in taken:
            table.frozen = kept[table]
        for module in modules:
            base = getattr(module, "base_layer", module)
            forward = _adapted_product(module, kept[base], base.bias) if base in kept else None
            if forward is not None:
                module.forward = forward
                fast.append(module)
        yield
    finally:
        for module in fast:
            vars(module).pop("forward", None)
        for table in taken:
            table.frozen = None


def _product(weight: Tensor, bias: Tensor | None) -> Forward:
    def forward(x: Tensor) -> Tensor:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    return forward


def _adapted_product(module: nn.Module, weight: Tensor, bias: Tensor | None) -> Forward | None:
    """The forward of a linear under one plain LoRA adapter, by the products that PEFT makes; None if it has another."""
    if not isinstance(module, LoraLayer) or module.disable_adapters or module.merged or module.training:
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) != 1 or module.lora_variant:
        return None
    a, b, scaling = module.lora_A[active[0]], module.lora_B[active[0]], module.scaling[active[0]]
    alike = {tensor.dtype for tensor in (weight, a.weight, b.weight)}
    if a.bias is not None or b.bias is not None or len(alike) != 1 or (bias is not None and bias.dtype != weight.dtype):
        return None
    if math.log2(abs(scaling) or 1.0).is_integer():  # exact, wherever it is multiplied
        scaled, scaling = b.weight * scaling, 1.0
    else:
        scaled = b.weight
    down, linear, dtype, usual = a.weight, F.linear, weight.dtype, type(module).forward

    def forward(x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dtype != dtype or args or options:
            return usual(module, x, *args, **options)
        change = linear(linear(x, down), scaled)
        return linear(x, weight, bias) + (change if scaling == 1.0 else change * scaling)

    return forward
