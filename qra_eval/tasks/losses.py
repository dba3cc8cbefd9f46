"""Losses of a model on batches of rows, with the output head at labelled positions only."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.tasks.batches import Batch, collate, group_by_length
from qra_eval.tasks.encoding import Encoded

CHUNK = 64
"""Rows of logits that are in float32 at a time."""


class LabelledHead(nn.Module):
    """The output head, applied to the labelled positions of a batch alone.

    Set `positions` before a forward pass; the model's logits are then (1, M, vocabulary). Whatever the model does to
    its logits after the head (scaling, soft-capping) works on these as on the whole.
    """

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head
        self.positions: Tensor | None = None

    @property
    def weight(self) -> Any:
        return self.head.weight

    def forward(self, hidden: Tensor) -> Tensor:
        if self.positions is None:
            return self.head(hidden)
        return self.head(hidden.reshape(-1, hidden.shape[-1])[self.positions].unsqueeze(0))


@contextmanager
def wrap_head(model: Any):
    """The model with its head wrapped by `LabelledHead`, which is given to the caller."""
    head = model.get_output_embeddings()
    if isinstance(head, LabelledHead):
        yield head
        return
    wrapper = LabelledHead(head)
    name = next(name for name, module in model.named_modules() if module is head)
    model.set_submodule(name, wrapper)
    try:
        yield wrapper
    finally:
        model.set_submodule(name, head)


class CrossEntropy(torch.autograd.Function):
    """Summed cross-entropy of half-precision logits, computed in float32 a few rows at a time.

    The gradient is made in the forward pass, in the logits' dtype: of a large vocabulary no float32 copy is held.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), device=logits.device, dtype=torch.float32)
        gradient = torch.empty_like(logits) if logits.requires_grad else None
        for start in range(0, len(targets), CHUNK):
            rows = slice(start, start + CHUNK)
            chunk = logits[rows].float()
            wanted = targets[rows].unsqueeze(1)
            normaliser = chunk.logsumexp(1, keepdim=True)
            total += (normaliser - chunk.gather(1, wanted)).sum()
            if gradient is not None:
                chunk = (chunk - normaliser).exp_()
                chunk.scatter_add_(1, wanted, chunk.new_full((len(wanted), 1), -1.0))
                gradient[rows] = chunk.to(logits.dtype)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0].to(gradient.dtype), None


def compute_logits(model: Any, head: LabelledHead, batch: Batch) -> Tensor:
    """Logits (M, vocabulary) at the labelled positions of a batch."""
    head.positions = batch.positions
    try:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    finally:
        head.positions = None
    return logits.reshape(-1, logits.shape[-1])


def compute_batch_loss(model: Any, head: LabelledHead, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats over the labelled tokens of a batch."""
    total = CrossEntropy.apply(compute_logits(model, head, batch), batch.targets)
    return total / len(batch.targets) if reduction == "mean" else total


@torch.no_grad()
def measure_loss(model: Any, batches: Sequence[Batch], device: torch.device) -> float:
    """Mean loss in nats a labelled token over all batches."""
    model.eval()
    total = 0.0
    count = 0
    with wrap_head(model) as head:
        for batch in batches:
            batch = batch.to(device)
            total += float(compute_batch_loss(model, head, batch, "sum"))
            count += len(batch.targets)
    return total / max(count, 1)


@torch.no_grad()
def measure_row_losses(
    model: Any, rows: Sequence[Encoded], batch_size: int, device: torch.device
) -> tuple[list[float], list[int]]:
    """Summed loss in nats, and number of labelled tokens, of each row: what paired comparisons of models need."""
    model.eval()
    totals = torch.zeros(len(rows), dtype=torch.float64)
    counts = torch.zeros(len(rows), dtype=torch.long)
    with wrap_head(model) as head:
        for chosen in group_by_length(list(map(len, rows)), batch_size):
            batch = collate([rows[i] for i in chosen]).to(device)
            logits = compute_logits(model, head, batch)
            owner = torch.tensor(chosen)[(batch.positions // batch.input_ids.shape[1]).cpu()]
            for part in range(0, len(owner), CHUNK):
                k = slice(part, part + CHUNK)
                loss = nn.functional.cross_entropy(logits[k].float(), batch.targets[k], reduction="none")
                totals.index_add_(0, owner[k], loss.double().cpu())
            counts.index_add_(0, owner, torch.ones_like(owner))
    return totals.tolist(), counts.tolist()
