"""Token embeddings in 8 bits: of a small model, and of any with a large vocabulary, they are much of the memory.

Each row of the table has a scale of its own (largest absolute value over 127). A head that shares the table with the
embedding goes on sharing it. Position tables, norms and biases stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LEVELS = 127
ROWS = 8192
"""Rows of a table that the head dequantizes at a time."""


class RowTable(nn.Module):
    """A table (V, H) as int8 codes and a scale a row.

    Args:
        weight: (V, H) of any floating dtype, which the scales and the dequantized rows have too.
    """

    codes: Tensor
    bits: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        rows = weight.detach()
        least = torch.finfo(weight.dtype).tiny
        scale = (rows.abs().amax(1, keepdim=True).float() / LEVELS).clamp_min(least).to(weight.dtype)
        self.register_buffer("codes", torch.empty(rows.shape, dtype=torch.int8, device=rows.device))
        for start in range(0, len(rows), ROWS):
            part = slice(start, start + ROWS)
            self.codes[part] = torch.round(rows[part].float() / scale[part].float()).clamp_(-LEVELS, LEVELS)
        # Not a floating buffer: what computes in another dtype than it stores would round the scales again.
        self.register_buffer("bits", scale.view({2: torch.int16, 4: torch.int32}[scale.element_size()]))
        self.dtype = weight.dtype

    def rows(self, at: Any) -> Tensor:
        """Dequantized rows, by index or slice. A code has 7 bits: bfloat16's product is the exact one, rounded."""
        return self.codes[at].to(self.dtype) * self.bits.view(self.dtype)[at]


class QuantizedEmbedding(nn.Module):
    """In place of an `nn.Embedding`, or of one that multiplies its rows by `embed_scale`."""

    embed_scale: Tensor | None

    def __init__(self, table: RowTable, embedding: nn.Embedding):
        super().__init__()
        self.table = table
        self.embedding_dim, self.num_embeddings = embedding.embedding_dim, embedding.num_embeddings
        self.padding_idx = embedding.padding_idx
        # Its dtype is that of the output: what computes in another dtype than it stores casts every parameter.
        self.computed = nn.Parameter(torch.empty(0, dtype=table.dtype, device=table.codes.device), requires_grad=False)
        self.register_buffer("embed_scale", getattr(embedding, "embed_scale", None), persistent=False)
        embedding.weight = nn.Parameter(embedding.weight.to("meta"), requires_grad=False)
        self._was = (embedding,)  # in a tuple: it is no part of this module

    @property
    def weight(self) -> Tensor:
        """The whole table (V, H), dequantized."""
        return self.table.rows(slice(None)).to(self.computed.dtype)

    def forward(self, input_ids: Tensor) -> Tensor:
        rows = self.table.rows(input_ids).to(self.computed.dtype)
        return rows if self.embed_scale is None else rows * self.embed_scale.to(rows.dtype)


class QuantizedHead(nn.Module):
    """In place of the linear that gives the logits."""

    def __init__(self, table: RowTable, head: nn.Linear):
        super().__init__()
        self.table, self.bias = table, head.bias
        self.out_features, self.in_features = head.out_features, head.in_features

    @property
    def weight(self) -> Tensor:
        """The whole table (V, H), dequantized."""
        return self.table.rows(slice(None))

    def forward(self, hidden: Tensor) -> Tensor:
        logits = _Logits.apply(hidden, self.table)
        return logits if self.bias is None else logits + self.bias


class _Logits(torch.autograd.Function):
    """hidden (..., H) times the table's rows, some at a time: neither pass holds the table dequantized as a whole."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: RowTable) -> Tensor:
        ctx.table = table
        parts = (rows.to(hidden.dtype) for rows in _in_parts(table))
        return torch.cat([hidden @ rows.t() for rows in parts], dim=-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        total, start = None, 0
        for rows in _in_parts(ctx.table):
            part = grad[..., start : start + len(rows)] @ rows.to(grad.dtype)
            total = part if total is None else total.add_(part)
            start += len(rows)
        assert total is not None
        return total, None


def _in_parts(table: RowTable):
    for start in range(0, len(table.codes), ROWS):
        yield table.rows(slice(start, start + ROWS))


def quantize_embeddings(model: Any) -> None:
    """Put the input embedding and the head of a causal language model in 8 bits, in place.

    Raises:
        ValueError: the embedding or the head is of a kind that this does not know.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or embedding.max_norm is not None or type(head) is not nn.Linear:
        raise ValueError(
            f"embeddings of a {type(model).__name__} ({type(embedding).__name__}, head {type(head).__name__}) cannot "
            "be kept in 8 bits: leave quantization.embeddings at 16"
        )
    names = {id(module): name for name, module in model.named_modules()}
    table = RowTable(embedding.weight)
    tied = head.weight is embedding.weight or head.weight.data_ptr() == embedding.weight.data_ptr()
    model.set_submodule(names[id(head)], QuantizedHead(table if tied else RowTable(head.weight), head))
    model.set_submodule(names[id(embedding)], QuantizedEmbedding(table, embedding))


def dequantize_embeddings(model: Any) -> None:
    """Undo `quantize_embeddings` but for the rounding, so that any tool knows the layers; nothing if none is."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, QuantizedEmbedding):
        return
    plain_head = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    tied = head.table is embedding.table
    weight = nn.Parameter(embedding.weight, requires_grad=False)
    plain_head.weight = weight if tied else nn.Parameter(head.weight, requires_grad=False)
    plain_head.bias = head.bias
    names = {id(module): name for name, module in model.named_modules()}
    (plain,) = embedding._was
    plain.weight = weight
    model.set_submodule(names[id(head)], plain_head)
    model.set_submodule(names[id(embedding)], plain)
