"""The optimizer's loop of every fine-tuning, short or full."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qra_eval.models.device import release_freed_memory
from qra_eval.quantized.adapters import ParameterGroup
from qra_eval.tasks.batches import Batch, LabelledPositionsHead, compute_batch_loss, wrap_head
from qra_search.sections import TrainingConfig

MAX_GRADIENT_NORM = 1.0
"""Of the gradients of a group together; larger ones are scaled down to it."""
BACKWARD = 2.0
"""Cost of a backward pass in forward passes; a training step costs one of each."""


class Diverged(RuntimeError):
    """The training loss is not finite."""


@dataclass(frozen=True)
class Trained:
    """What a training loop did: mean loss of its last quarter, and tokens seen."""

    loss: float
    tokens: int


class Training:
    """The state of a training: all that its next step depends on, but for the batches and the frozen weights.

    Attributes:
        losses: of the steps made, of `steps` in all; their number is the place in the data.
        earlier_seconds: spent on it before it was resumed.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        settings: TrainingConfig,
        steps: int,
        device: torch.device,
    ):
        self.groups = groups
        self.settings = settings
        self.steps = steps
        self.device = device
        self.losses: list[float] = []
        self.tokens = 0
        self.last_rate = 0.0
        self.earlier_seconds = 0.0
        self._begun = time.perf_counter()
        # On a few hundred small factors one fused kernel takes a fraction of the time.
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters.values())} for group in groups],
            lr=settings.rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self._begun

    def make_step(self, model: Any, head: LabelledPositionsHead, batches: Sequence[Batch]) -> None:
        """One step of the optimizer on the mean loss of all labelled tokens of some batches.

        Raises Diverged if the loss is not finite.
        """
        labels = sum(len(batch.targets) for batch in batches)
        value = 0.0
        for batch in batches:
            loss = compute_batch_loss(model, head, batch.to(self.device), "sum") / labels
            loss.backward()
            value += float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(
                f"training loss is {value} at step {self.step + 1} of {self.steps}: lower the learning rate"
            )
        settings = self.settings
        share = schedule_rate(self.step, self.steps, settings.warmup)
        self.last_rate = settings.rate * share
        for group, options in zip(self.groups, self.optimizer.param_groups, strict=True):
            options["lr"] = self.last_rate * group.rate
            nn.utils.clip_grad_norm_(options["params"], MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        release_freed_memory(self.device)
        self.losses.append(value)
        self.tokens += sum(batch.tokens for batch in batches)


class TrainerCallback:
    """What follows a training, in training mode, and leaves it so; `on_step_end` returns whether to stop."""

    def on_train_begin(self, training: Training) -> None:
        """Before the first step of this process."""

    def on_step_end(self, training: Training) -> bool:
        return False

    def on_train_end(self, training: Training) -> None:
        """After the last step, or the one that it was stopped at."""


def train(
    model: Any,
    groups: Sequence[ParameterGroup],
    batches: Sequence[Batch],
    settings: TrainingConfig,
    *,
    seed: int,
    device: torch.device,
    callback: TrainerCallback = TrainerCallback(),  # noqa: B008 - it has no state
) -> Trained:
    """AdamW, gradients clipped by group, warm-up and decay in lines; `settings.accumulation` batches a step."""
    if not groups or not batches:
        return Trained(float("nan"), 0)
    size = settings.accumulation
    torch.manual_seed(seed)
    training = Training(groups, settings, len(batches) // size, device)
    model.train()
    try:
        with wrap_head(model) as head:
            callback.on_train_begin(training)
            while training.step < training.steps:
                first = training.step * size
                training.make_step(model, head, batches[first : first + size])
                if callback.on_step_end(training):
                    break
            callback.on_train_end(training)
    finally:
        model.eval()
    losses = training.losses
    tail = losses[-max(1, len(losses) // 4) :]
    return Trained(sum(tail) / len(tail), training.tokens)


def schedule_rate(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step, counted from 0: rises in a line over the warm-up, then falls in one.

    It would reach zero one step after the last. It has no state: what a resumed training goes on with follows from its
    step alone.
    """
    rise = max(1, math.ceil(warmup * steps))
    return (step + 1) / rise if step < rise else (steps - step) / (steps - rise + 1)
