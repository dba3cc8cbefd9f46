"""From rows to padded batches, in an order that a seed gives a training, and the losses of a model on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.tasks.encoding import IGNORED, Encoded

PASS_ROWS, PASS_TOKENS = 8, 4096
"""Rows, and about as many tokens, that pass through a layer together, at most."""
SORTED_BATCHES = 16
"""Batches' worth of rows, in the order that they were drawn in, among which rows of similar length are put together."""
PASS_MULTIPLE = 32
"""Rows of a calibration batch are padded to a multiple of this length."""
LOGIT_ROWS = 64
"""Rows of logits that are in float32 at a time."""


@dataclass(frozen=True)
class Batch:
    """Rows padded at the right to (N, T): under a causal mask no real token sees the padding, so none is masked.

    Attributes:
        input_ids: int (N, T).
        positions: int (M,), flat indices into N*T whose next token has a label.
        targets: int (M,), those labels.
        tokens: real tokens, padding left out.
        width: tokens of the longest row, if rows are padded further than to that; else 0.
    """

    input_ids: Tensor
    positions: Tensor
    targets: Tensor
    tokens: int
    width: int = 0

    def to(self, device: torch.device) -> Batch:
        moved = {name: getattr(self, name).to(device) for name in ("input_ids", "positions", "targets")}
        return replace(self, **moved)


def collate(rows: Sequence[Encoded], *, multiple: int | None = None) -> Batch:
    """Pad rows to the next multiple beyond their longest, and find the labelled positions.

    By default few lengths are used, four from one power of two to the next: for bfloat16 on a CPU oneDNN compiles its
    products anew for each length, which takes a tenth of a training step of SmolLM2.
    """
    longest = max(len(row) for row in rows)
    multiple = multiple or max(1, (1 << longest.bit_length()) >> 3)
    padded = -(-longest // multiple) * multiple
    ids = torch.zeros(len(rows), padded, dtype=torch.long)
    labels = torch.full((len(rows), padded), IGNORED, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.input_ids
        labels[i, : len(row)] = row.labels
    following = torch.full_like(labels, IGNORED)
    following[:, :-1] = labels[:, 1:]
    positions = (following.reshape(-1) != IGNORED).nonzero().squeeze(1)
    width = longest if padded > longest else 0
    return Batch(ids, positions, following.reshape(-1)[positions], sum(len(row) for row in rows), width)


def group_by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices of what shares a batch: the shortest first, those of equal length in their order."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def make_batches(rows: Sequence[Encoded], batch_size: int) -> list[Batch]:
    """Batches of rows of similar length, in order of length, as equal as they can be.

    Were what is left over a batch of its own, these rows would be the longest each time, and weigh more in a training.
    """
    (order,) = group_by_length(list(map(len, rows)), len(rows))
    count = -(-len(rows) // batch_size)
    ends = [len(rows) * i // count for i in range(count + 1)]
    return [collate([rows[i] for i in order[start:end]]) for start, end in itertools.pairwise(ends)]


def make_pass_batches(rows: Sequence[Encoded], multiple: int = PASS_MULTIPLE) -> list[Batch]:
    """Batches for passes that go layer by layer, in order of length: as large as they are quick, whatever a training's.

    In memory is one layer's share of them. Few lengths, multiples of one: for bfloat16 on a CPU oneDNN compiles its
    products anew for each, and keeps them: 128 rows of 99 lengths took twice the time and 530 MiB more.
    """
    size = max(1, min(PASS_ROWS, PASS_TOKENS // max(map(len, rows))))
    groups = group_by_length(list(map(len, rows)), size)
    return [collate([rows[i] for i in group], multiple=multiple) for group in groups]


def schedule_batches(
    rows: Sequence[Encoded], steps: int, batch_size: int, seed: int, *, drawn: bool = False
) -> list[Batch]:
    """The batches of `steps` steps: whole passes over the rows, bucketed by length, shuffled by the seed.

    Of rows that are `drawn` in an order of the seed's own, which share a batch follows from that order as well.
    """
    generator = torch.Generator().manual_seed(seed)
    batches: list[Batch] = []
    while len(batches) < steps:
        need = min(len(rows), (steps - len(batches)) * batch_size)
        chosen = list(rows[:need])
        if need < len(rows) and batches:
            chosen = [rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()[:need]]
        starts = list(range(0, len(chosen), SORTED_BATCHES * batch_size if drawn else len(chosen)))
        if len(starts) > 1 and len(chosen) - starts[-1] < batch_size:
            starts.pop()  # the last rows alone would be a small batch that counts as much as the others
        spans = itertools.pairwise([*starts, len(chosen)])
        some = [batch for start, end in spans for batch in make_batches(chosen[start:end], batch_size)]
        batches += [some[i] for i in torch.randperm(len(some), generator=generator).tolist()]
    return batches[:steps]


# -- losses ------------------------------------------------------------------------------------
class LabelledPositionsHead(nn.Module):
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
    """The model with its head wrapped by `LabelledPositionsHead`, which is given to the caller."""
    head = model.get_output_embeddings()
    if isinstance(head, LabelledPositionsHead):
        yield head
        return
    wrapper = LabelledPositionsHead(head)
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
        for start in range(0, len(targets), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
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


def compute_logits(model: Any, head: LabelledPositionsHead, batch: Batch) -> Tensor:
    """Logits (M, vocabulary) at the labelled positions of a batch."""
    head.positions = batch.positions
    try:
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    finally:
        head.positions = None
    return logits.reshape(-1, logits.shape[-1])


def compute_batch_loss(model: Any, head: LabelledPositionsHead, batch: Batch) -> Tensor:
    """Summed cross-entropy in nats over the labelled tokens of a batch."""
    return CrossEntropy.apply(compute_logits(model, head, batch), batch.targets)


@torch.no_grad()
def measure_loss(model: Any, batches: Sequence[Batch], device: torch.device) -> float:
    """Mean loss in nats a labelled token over all batches."""
    model.eval()
    total = 0.0
    count = 0
    with wrap_head(model) as head:
        for batch in batches:
            batch = batch.to(device)
            total += float(compute_batch_loss(model, head, batch))
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
            for part in range(0, len(owner), LOGIT_ROWS):
                k = slice(part, part + LOGIT_ROWS)
                loss = nn.functional.cross_entropy(logits[k].float(), batch.targets[k], reduction="none")
                totals.index_add_(0, owner[k], loss.double().cpu())
            counts.index_add_(0, owner, torch.ones_like(owner))
    return totals.tolist(), counts.tolist()
