"""The optimizer's loop of every fine-tuning, short or full, and what follows a full one."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.models.device import release_freed_memory
from qra_eval.quantized.adapters import ParameterGroup
from qra_eval.quantized.bank import open_tensors, write_tensors
from qra_eval.tasks.batches import Batch, LabelledPositionsHead, compute_batch_loss, wrap_head
from qra_search.app.evaluator import StepFigures
from qra_search.app.tuning_folder import CHECKPOINT_FILE, CURVE_FILE
from qra_search.errors import RunFailed
from qra_search.files import write_text
from qra_search.sections import FinetuneConfig, TrainingConfig
from qra_search.study.study import handle_interrupt

MAX_GRADIENT_NORM = 1.0
"""Of the gradients of a group together; larger ones are scaled down to it."""
BACKWARD_COST = 2.0
"""Cost of a backward pass in forward passes; a training step costs one of each."""

RESUMED_ATTRIBUTES = ("best_value", "best_step", "curve")
"""Attributes of a full tuning that a checkpoint has."""


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
            loss = compute_batch_loss(model, head, batch.to(self.device)) / labels
            loss.backward()
            value += float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(
                f"the training loss is {value} at step {self.step + 1} of {self.steps}: lower the learning rate"
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


# -- full tunings ------------------------------------------------------------------------------
class FullTuning(TrainerCallback):
    """Follows a full tuning, so that it can be stopped at any step and resumed.

    Resumed on the same machine, the training ends in the same numbers as one that was never stopped. A checkpoint is
    always written after the last step, so that measuring and saving can be resumed as well.

    Args:
        validate: loss on validation rows of the model as it is, which it leaves in training mode.
        identity: what the training depends on, as plain data; the checkpoint of another one is not resumed.
        folder: of checkpoint and curve; None: neither is written.

    Attributes:
        resumed_after: the step of the checkpoint that it was resumed from; 0: it began anew.
    """

    def __init__(
        self,
        settings: FinetuneConfig,
        validate: Callable[[], float],
        identity: Mapping[str, Any],
        folder: Path | None = None,
        on_step: Callable[[int, StepFigures], None] | None = None,
    ):
        self.settings = settings
        self.validate = validate
        self.identity = identity
        self.folder = folder
        self.on_step = on_step
        self.best: dict[str, Tensor] = {}
        self.best_value = float("inf")
        self.best_step: int | None = None
        self.curve: list[str] = []
        self.resumed_after = 0
        self.earlier_seconds = 0.0
        self._interrupted = Event()
        self._written = time.monotonic()

    @property
    def checkpoint(self) -> Path:
        assert self.folder is not None
        return self.folder / CHECKPOINT_FILE

    def on_train_begin(self, training: Training) -> None:
        if self.folder is None:
            return
        if self.checkpoint.is_file():
            self._read_checkpoint(training)
        self.resumed_after = training.step
        self.earlier_seconds = training.earlier_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        # Steps after the checkpoint are made again.
        write_text(self.folder / CURVE_FILE, "".join(self.curve))

    def on_step_end(self, training: Training) -> bool:
        """Look at validation rows and write a checkpoint, if it is time."""
        settings, step = self.settings, training.step
        is_last = step == training.steps
        figures = {"loss": training.losses[-1], "rate": training.last_rate, "tokens": float(training.tokens)}
        if settings.evaluate_every and (is_last or step % settings.evaluate_every == 0):
            figures["validation_loss"] = loss = self.validate()
            if loss < self.best_value:
                self.best_value = loss
                self.best_step = step
                self.best = {name: p.detach().cpu().clone() for name, p in get_parameters(training).items()}
        self._write_step(step, figures)
        # What comes while this waits is for the next step.
        interrupted = self._interrupted.is_set()
        minutes = (time.monotonic() - self._written) / 60
        if self.folder is not None and (is_last or interrupted or minutes >= settings.checkpoint_minutes):
            self._write_checkpoint(training)
            self._written = time.monotonic()
        if interrupted:
            raise KeyboardInterrupt(f"step {step} of {training.steps} is saved")
        return False

    def save_on_interrupt(self) -> AbstractContextManager[None]:
        """Ctrl-C writes a checkpoint after the running step and then ends the tuning; a second one ends it at once."""
        return nullcontext() if self.folder is None else handle_interrupt(self._interrupted.set)

    def on_train_end(self, training: Training) -> None:
        """Put the best parameters in place, if there are any."""
        for name, tensor in self.best.items():
            get_parameters(training)[name].data.copy_(tensor)

    def _write_step(self, step: int, figures: dict[str, float]) -> None:
        if self.folder is not None:
            self.curve.append(json.dumps({"step": step, **figures}) + "\n")
            with (self.folder / CURVE_FILE).open("a") as file:
                file.write(self.curve[-1])
        if self.on_step is not None:
            self.on_step(step, figures)

    # -- checkpoints ---------------------------------------------------------------------------
    def _write_checkpoint(self, training: Training) -> None:
        """Write all that the next step depends on."""
        tensors = {"generator::cpu": torch.get_rng_state()}
        if training.device.type == "cuda":
            tensors["generator::cuda"] = torch.cuda.get_rng_state(training.device)
        for name, parameter in get_parameters(training).items():
            tensors[f"value::{name}"] = parameter.detach()
            moments = training.optimizer.state[parameter]
            tensors |= {f"{moment}::{name}": tensor for moment, tensor in moments.items()}
        tensors |= {f"best::{name}": tensor for name, tensor in self.best.items()}
        state = {
            "identity": self.identity,
            "training": {"losses": training.losses, "tokens": training.tokens},
            "seconds": training.seconds,
            "full": {name: getattr(self, name) for name in RESUMED_ATTRIBUTES},
        }
        write_tensors(tensors, self.checkpoint, metadata={"state": json.dumps(state)}, durable=True)

    def _read_checkpoint(self, training: Training) -> None:
        """Restore a training, unless the checkpoint is of another one; raises RunFailed if it is damaged."""
        try:
            file = open_tensors(self.checkpoint)
            state = json.loads(file.metadata()["state"])
            if state["identity"] != json.loads(json.dumps(self.identity)):
                return
            parts: dict[str, dict[str, Tensor]] = {}
            for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                part, _, name = key.partition("::")
                parts.setdefault(name, {})[part] = file.get_tensor(key).clone()
            for name, parameter in get_parameters(training).items():
                own = parts[name]
                parameter.data.copy_(own.pop("value"))
                if "best" in own:
                    self.best[name] = own.pop("best")
                training.optimizer.state[parameter] = {k: t.to(parameter.device) for k, t in own.items()}
            vars(training).update(state["training"], earlier_seconds=state["seconds"])
            vars(self).update(state["full"])
            torch.set_rng_state(parts["cpu"]["generator"])
            if "cuda" in parts:
                torch.cuda.set_rng_state(parts["cuda"]["generator"], training.device)
        except (TypeError, LookupError, ValueError, RuntimeError) as error:
            raise RunFailed(
                f"{self.checkpoint} is damaged ({error}): delete it to train from the beginning"
            ) from error


def get_parameters(training: Training) -> dict[str, nn.Parameter]:
    """All that is trained, by name."""
    return {name: p for group in training.groups for name, p in group.parameters.items()}
