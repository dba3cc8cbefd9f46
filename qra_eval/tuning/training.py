"""The optimizer's loop of a short fine-tuning."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qra_eval.quantized.adapters import ParameterGroup
from qra_eval.tasks.batches import Batch
from qra_eval.tasks.losses import batch_loss, labelled_head

BACKWARD = 2.0
"""Cost of a backward pass in forward passes; a training step costs one of each."""


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
    groups: Sequence[ParameterGroup],
    batches: Sequence[Batch],
    *,
    learning_rate: float,
    warmup: float,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int, float], None] | None = None,
    hopeless: Callable[[Sequence[float], int], bool] | None = None,
) -> Trained:
    """AdamW without weight decay, gradients clipped by group, linear warm-up and linear decay; one batch a step.

    Args:
        hopeless: asked after each step, with the losses so far and the steps in all, whether to stop there.

    Raises:
        Diverged: the loss is not finite.
    """
    start, in_model, tokens, losses, cut_at = time.perf_counter(), 0.0, 0, [], None
    if not groups or not batches:
        return Trained(float("nan"), 0, 0.0, 0.0)
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters.values())} for group in groups],
        lr=learning_rate,
        weight_decay=0.0,
        fused=True,
    )
    model.train()
    with labelled_head(model) as head:
        for step, batch in enumerate(batches):
            begun = time.perf_counter()
            loss = batch_loss(model, head, batch.to(device))
            loss.backward()
            value = float(loss.detach())
            in_model += time.perf_counter() - begun
            if not math.isfinite(value):
                raise Diverged(f"training loss is {value} at step {step + 1} of {len(batches)}")
            for group, options in zip(groups, optimizer.param_groups, strict=True):
                options["lr"] = learning_rate * group.rate * rate_at(step, len(batches), warmup)
                nn.utils.clip_grad_norm_(options["params"], group.clip)
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
