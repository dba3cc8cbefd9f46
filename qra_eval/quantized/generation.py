"""Generation with weights kept dequantized: a token asks for every weight, and to dequantize it each time is slow."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from qra_backends.base import Backend
from torch import Tensor, nn
from torch.nn import functional as F

from qra_eval.models.embeddings import TableEmbedding, TableHead
from qra_eval.quantized.model import dequantized_cache_bytes


def cache_weights_in_generate(model: Any, backend: Backend, names: Collection[str]) -> None:
    """Have `generate` of a loaded model keep weights dequantized while it runs, if memory that is free holds them.

    Args:
        names: of the linears that the backend has quantized; tables are found.
    """

    def generate(self: Any, *args: Any, **options: Any) -> Any:
        with cached_weights(self, backend, names):
            return type(self).generate(self, *args, **options)

    model.generate = MethodType(generate, model)  # a copy of the model is bound to itself


@contextmanager
def cached_weights(model: Any, backend: Backend, names: Collection[str]) -> Iterator[None]:
    """Multiply by dequantized weights while the context lasts; as before if they do not fit in what is free."""
    modules = [model.get_submodule(name) for name in names]
    linears = [getattr(module, "base_layer", module) for module in modules]  # below an adapter of PEFT
    linears = [linear for linear in linears if type(linear) is not nn.Linear]  # merged since
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(end.table): end.table for end in ends if isinstance(end, TableEmbedding | TableHead)}
    taken = [table for table in tables.values() if table.module is not None and table.plain is None]
    dtype = model.dtype
    shapes = [(linear.out_features, linear.in_features) for linear in linears] + [table.shape for table in taken]
    if sum(rows * columns for rows, columns in shapes) * dtype.itemsize > dequantized_cache_bytes("auto", model.device):
        yield
        return
    try:
        with torch.no_grad():
            for linear in linears:
                linear.forward = _product(backend.dequantize(linear).to(dtype), linear.bias)
            for table in taken:
                table.frozen = table.weight.to(dtype)
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)
        for table in taken:
            table.frozen = None


def _product(weight: Tensor, bias: Tensor | None) -> Any:
    def forward(x: Tensor) -> Tensor:
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    return forward
