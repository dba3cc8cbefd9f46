"""Tables of a causal language model: the token embedding and the head, which are one table if the model ties them.

Of a small model, and of any with a large vocabulary, they are much of the memory. A backend stores a table as it stores
a linear of shape (vocabulary, hidden); an embedding looks up its rows, and a head multiplies by it. Position tables,
norms and biases stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from qra_backends import Backend
from torch import Tensor, nn
from torch.nn import functional as F

from qra_eval.models.linears import make_linear

HEAD_ROWS = 8192
"""Rows of a table that the head dequantizes, or casts, at a time."""


def find_embeddings(model: Any) -> dict[str, nn.Linear]:
    """The tables of a causal language model by path: one if it is tied (the embedding's), else the embedding and the
    head; none if they are of a kind that cannot be quantized.

    Each is a linear (vocabulary, hidden), with the model's own parameter for a weight and no bias.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if (
        not isinstance(embedding, nn.Embedding)
        or embedding.max_norm is not None
        or type(head) is not nn.Linear
    ):
        return {}
    real = type(head.weight.data) is Tensor and head.weight.device.type != "meta"  # others lie nowhere
    tied = head.weight is embedding.weight or (real and head.weight.data_ptr() == embedding.weight.data_ptr())
    ends: list[Any] = [embedding] if tied else [embedding, head]
    return {_find_path(model, end): make_linear(end.weight) for end in ends}


def place_embeddings(model: Any, device: torch.device, waiting: Collection[str]) -> None:
    """Put a model's tables on a device, but for those with some names: they wait on the host."""
    for name, table in find_embeddings(model).items():
        table.weight.data = table.weight.data.to("cpu" if name in waiting else device)


class Table(nn.Module):
    """The rows (V, H) of a table: as they were loaded (`own`), dequantized, or quantized in a module of a backend."""

    def __init__(self, own: Any, backend: Backend):
        super().__init__()
        self.own: nn.Parameter | None = own
        self.backend = backend
        self.shape = tuple(own.shape)
        self.module: nn.Module | None = None
        self.frozen: Tensor | None = None

    def set_base(self, *, module: nn.Module | None = None, weight: Tensor | None = None) -> None:
        """Take a module, or a plain weight (V, H), in place of the model's own weight."""
        self.module = module
        self.frozen = weight

    @property
    def plain_weight(self) -> Tensor | None:
        if self.frozen is not None:
            return self.frozen
        if self.module is None:
            return self.own
        return self.module.weight if type(self.module) is nn.Linear else None

    @property
    def weight(self) -> Tensor:
        if self.plain_weight is not None:
            return self.plain_weight
        assert self.module is not None
        return self.backend.dequantize(self.module)

    def dequantize_rows(self, at: Tensor) -> Tensor:
        if self.plain_weight is not None:
            return F.embedding(at, self.plain_weight)
        assert self.module is not None
        return self.backend.dequantize_rows(self.module, at)


class TableEmbedding(nn.Module):
    """In place of an `nn.Embedding`, or of one that multiplies its rows by `embed_scale`."""

    embed_scale: Tensor | None

    def __init__(self, table: Table, embedding: nn.Embedding, device: torch.device | None = None):
        super().__init__()
        self.table = table
        self.embedding_dim, self.num_embeddings = embedding.embedding_dim, embedding.num_embeddings
        self.padding_idx = embedding.padding_idx
        # Its dtype is that of the output: what computes in another dtype than it stores casts every parameter.
        self.computed = nn.Parameter(embedding.weight.new_empty(0, device=device), requires_grad=False)
        scale = getattr(embedding, "embed_scale", None)
        self.register_buffer("embed_scale", scale if isinstance(scale, Tensor) else None, persistent=False)
        self.factor = None if isinstance(scale, Tensor) else scale
        self.was = (embedding,)  # in a tuple: it is no part of this module

    @property
    def weight(self) -> Tensor:
        return self.table.weight.to(self.computed.dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = self.table.dequantize_rows(input_ids.reshape(-1)).to(self.computed.dtype)
        rows = rows.view(*input_ids.shape, self.embedding_dim)
        if self.factor is not None:
            return rows * self.factor
        return rows if self.embed_scale is None else rows * self.embed_scale.to(rows.dtype)


class TableHead(nn.Module):
    """In place of the linear that gives the logits; if `tied`, the embedding looks up the same table, and saves it."""

    def __init__(self, table: Table, head: nn.Linear, *, tied: bool = False):
        super().__init__()
        # transformers leaves out of a file what is named here; it refuses tensors that would be in it twice.
        self._tied_weights_keys = {"table": "table"} if tied else {}
        self.table, self.bias = table, head.bias
        self.out_features, self.in_features = head.out_features, head.in_features
        self.was = (head,)

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, hidden: Tensor) -> Tensor:
        plain, hidden = self.table.plain_weight, hidden.contiguous()  # see `loaded.make_input_contiguous`
        bias = None if self.bias is None else self.bias.to(hidden.dtype)
        if plain is not None and plain.dtype == hidden.dtype:
            return F.linear(hidden, plain, bias)
        inputs, module = hidden.numel() // self.in_features, self.table.module
        few = 0 if module is None or plain is not None else getattr(module, "few_inputs", 0)
        if module is not None and not torch.is_grad_enabled() and inputs <= few:
            logits = module(hidden)  # straight from the codes
        else:
            logits = _Logits.apply(hidden, self.table)
        return logits if bias is None else logits + bias


class _Logits(torch.autograd.Function):
    """hidden (..., H) times the table's rows, some at a time: no pass holds it cast, nor dequantized if its backend
    gives rows. Gradients of the parts are summed in float32: in bfloat16 they lose a hundredth."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Table) -> Tensor:
        ctx.table = table
        return torch.cat([hidden @ rows.t() for rows in _iterate_row_chunks(table, hidden)], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        total = grad.new_zeros(*grad.shape[:-1], ctx.table.shape[1], dtype=torch.float32)
        start = 0
        for rows in _iterate_row_chunks(ctx.table, grad):
            total += grad[..., start : start + len(rows)] @ rows
            start += len(rows)
        return total.to(grad.dtype), None


def _iterate_row_chunks(table: Table, like: Tensor):
    for start in range(0, table.shape[0], HEAD_ROWS):
        stop = min(start + HEAD_ROWS, table.shape[0])
        yield table.dequantize_rows(torch.arange(start, stop, device=like.device)).to(like.dtype)


def install_embeddings(model: Any, backend: Backend, device: torch.device | None = None) -> dict[str, Table]:
    """Put `Table`s in place of the embedding and the head of a model, which computes as before; by path."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = {name: Table(table.weight, backend) for name, table in find_embeddings(model).items()}
    first, *_, last = [*tables.values()] * 2
    _replace_module(model, head, TableHead(last, head, tied=len(tables) == 1))
    _replace_module(model, embedding, TableEmbedding(first, embedding, device))
    return tables


def replace_embeddings(
    model: Any,
    backend: Backend,
    quantize: Callable[[str, nn.Linear], nn.Module | None],
    device: torch.device | None = None,
) -> None:
    """Put the quantized modules of tables in place, for good: the weights that were loaded are let go.

    A table of which `quantize` gives None, by its path and linear, is left as it is.
    """
    linears = find_embeddings(model)
    for name, table in install_embeddings(model, backend, device).items():
        table.set_base(module=quantize(name, linears[name]))
        if table.module is not None:
            table.own = None  # no placeholder of it is left to be moved
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        if end.table.own is None:
            end.was[0].weight = nn.Parameter(torch.empty(end.table.shape, device="meta"), requires_grad=False)


def find_quantized_embeddings(model: Any) -> dict[str, nn.Module]:
    """The modules that stand for tables in a model, by path (the embedding's, if the table is tied)."""
    tables: dict[str, nn.Module] = {}
    for end in (model.get_input_embeddings(), model.get_output_embeddings()):
        module = end.table.module if isinstance(end, TableEmbedding | TableHead) else None
        if module is not None and module not in tables.values():
            tables[_find_path(model, end)] = module
    return tables


def restore_embeddings(model: Any) -> None:
    """Give the model its own embedding and head again, so that any tool knows the layers; nothing if it has them.

    A table that holds another weight than the model's own leaves it there, dequantized.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, TableEmbedding):
        return
    tied = head.table is embedding.table
    for end in [embedding] if tied else [embedding, head]:
        if end.table.module is not None or end.table.frozen is not None:
            end.was[0].weight = nn.Parameter(end.weight.detach(), requires_grad=False)
    if tied:
        head.was[0].weight = embedding.was[0].weight
    for end in (embedding, head):
        _replace_module(model, end, end.was[0])


def _find_path(model: Any, module: nn.Module) -> str:
    return next(name for name, each in model.named_modules() if each is module)


def _replace_module(model: Any, old: nn.Module, new: nn.Module) -> None:
    model.set_submodule(_find_path(model, old), new)
