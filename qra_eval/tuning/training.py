"""Short fine-tuning and held-out loss: batches, the head at labelled positions only, the optimizer's loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

IGNORED = -100
BACKWARD = 2.0
"""Cost of a backward pass in forward passes; a training step costs one of each."""
CHUNK = 64
"""Rows of logits that are in float32 at a time."""


@dataclass(frozen=True)
class Row:
    """One tokenized example: input ids and labels, each (T,), labels shifted by the loss, `IGNORED` where none."""

    input_ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """Rows padded at the right to (N, T): under a causal mask no real token sees the padding, so none is masked.

    Attributes:
        input_ids: int (N, T).
        positions: int (M,), flat indices into N*T whose next token has a label.
        targets: int (M,), those labels.
        tokens: real tokens, padding left out.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    tokens: int

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.positions.to(device), self.targets.to(device), self.tokens)


def collate(rows: Sequence[Row], pad: int = 0) -> Batch:
    """Pad rows to their longest and find the labelled positions."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.input_ids
        labels[i, : len(row)] = row.labels
    following = torch.full_like(labels, IGNORED)
    following[:, :-1] = labels[:, 1:]
    positions = (following.reshape(-1) != IGNORED).nonzero().squeeze(1)
    return Batch(ids, positions, following.reshape(-1)[positions], sum(len(row) for row in rows))


def bucketed(rows: Sequence[Row], batch_size: int) -> list[Batch]:
    """Batches of rows of similar length, in order of length."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    return [collate([rows[i] for i in order[k : k + batch_size]]) for k in range(0, len(order), batch_size)]


def schedule(rows: Sequence[Row], steps: int, batch_size: int, seed: int) -> list[Batch]:
    """The batches of `steps` steps: whole passes over the rows, bucketed by length, shuffled by the seed."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[Batch] = []
    while len(batches) < steps:
        need = min(len(rows), (steps - len(batches)) * batch_size)
        order = torch.randperm(len(rows), generator=generator).tolist() if need < len(rows) and batches else None
        chosen = [rows[i] for i in order[:need]] if order else list(rows[:need])
        some = bucketed(chosen, batch_size)
        batches += [some[i] for i in torch.randperm(len(some), generator=generator).tolist()]
    return batches[:steps]


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
def labelled_head(model: Any):
    """The model with its head wrapped by `LabelledHead`, which is given to the caller."""
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no output head: a causal language model is needed")
    if isinstance(head, LabelledHead):
        yield head
        return
    wrapper = LabelledHead(head)
    name = next(name for name, module in model.named_modules() if module is head)
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], wrapper)
    try:
        yield wrapper
    finally:
        setattr(parent, name.rpartition(".")[2], head)


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
            chunk, wanted = logits[rows].float(), targets[rows].unsqueeze(1)
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


def batch_loss(model: Any, head: LabelledHead, batch: Batch, reduction: str = "mean") -> Tensor:
    """Cross-entropy in nats over the labelled tokens of a batch."""
    head.positions = batch.positions
    try:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    finally:
        head.positions = None
    total = CrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), batch.targets)
    return total / len(batch.targets) if reduction == "mean" else total


@torch.no_grad()
def held_out_loss(model: Any, batches: Sequence[Batch], device: torch.device) -> float:
    """Mean loss in nats a labelled token over all batches."""
    model.eval()
    total, count = 0.0, 0
    with labelled_head(model) as head:
        for batch in batches:
            batch = batch.to(device)
            total += float(batch_loss(model, head, batch, "sum"))
            count += len(batch.targets)
    return total / max(count, 1)


@torch.no_grad()
def row_losses(model: Any, rows: Sequence[Row], batch_size: int, device: torch.device) -> tuple[list[float], list[int]]:
    """Summed loss in nats, and number of labelled tokens, of each row: what paired comparisons of models need."""
    model.eval()
    totals, counts = torch.zeros(len(rows)), torch.zeros(len(rows), dtype=torch.long)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    with labelled_head(model) as head:
        for start in range(0, len(order), batch_size):
            chosen = torch.tensor(order[start : start + batch_size])
            batch = collate([rows[i] for i in chosen.tolist()]).to(device)
            head.positions = batch.positions
            try:
                logits = model(input_ids=batch.input_ids, use_cache=False).logits
            finally:
                head.positions = None
            logits = logits.reshape(-1, logits.shape[-1])
            owner = chosen[(batch.positions // batch.input_ids.shape[1]).cpu()]
            for part in range(0, len(owner), CHUNK):
                k = slice(part, part + CHUNK)
                loss = nn.functional.cross_entropy(logits[k].float(), batch.targets[k], reduction="none").cpu()
                totals.index_add_(0, owner[k], loss)
            counts.index_add_(0, owner, torch.ones_like(owner))
    return totals.tolist(), counts.tolist()


class Diverged(RuntimeError):
    """The training loss is not finite."""


@dataclass(frozen=True)
class Trained:
    """What a training loop did: mean loss of its last quarter, tokens seen, seconds spent, those in the model, and the
    step after which it was cut short (None: it went to its end)."""

    loss: float
    tokens: int
    seconds: float
    model_seconds: float
    cut_at: int | None = None


def train(
    model: Any,
    parameters: Sequence[nn.Parameter],
    batches: Sequence[Batch],
    *,
    learning_rate: float,
    warmup: float,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int, float], None] | None = None,
    hopeless: Callable[[Sequence[float], int], bool] | None = None,
) -> Trained:
    """AdamW without weight decay, gradients clipped to norm 1, linear warm-up and linear decay; one batch a step.

    Args:
        hopeless: asked after each step, with the losses so far and the steps in all, whether to stop there.

    Raises:
        Diverged: the loss is not finite.
    """
    start, in_model, tokens, losses, cut_at = time.perf_counter(), 0.0, 0, [], None
    if not parameters or not batches:
        return Trained(float("nan"), 0, 0.0, 0.0)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(list(parameters), lr=learning_rate, weight_decay=0.0, fused=True)
    model.train()
    with labelled_head(model) as head:
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate_at(step, len(batches), warmup)
            begun = time.perf_counter()
            loss = batch_loss(model, head, batch.to(device))
            loss.backward()
            value = float(loss.detach())
            in_model += time.perf_counter() - begun
            if not math.isfinite(value):
                raise Diverged(f"training loss is {value} at step {step + 1} of {len(batches)}")
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(value)
            tokens += batch.tokens
            if progress is not None:
                progress(step + 1, len(batches), value)
            if hopeless is not None and step + 1 < len(batches) and hopeless(losses, len(batches)):
                cut_at = step + 1
                break
    model.eval()
    tail = losses[-max(1, len(losses) // 4) :]
    return Trained(sum(tail) / len(tail), tokens, time.perf_counter() - start, in_model, cut_at)


def rate_at(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: rises over the warm-up, then falls in a line towards zero."""
    rise = max(1, math.ceil(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return (steps - step) / (steps - rise + 1)
