"""The callback of a full tuning: looks at validation rows, keeps the best adapters, writes checkpoints and curve."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from qra_eval.quantized.bank import open_tensors, write_tensors
from qra_eval.tuning.training import TrainerCallback, Training
from qra_search.app.tunable import StepFigures
from qra_search.app.tuning_folder import CHECKPOINT_FILE, CURVE_FILE
from qra_search.errors import RunFailed
from qra_search.files import write_text
from qra_search.sections import FinetuneConfig
from qra_search.study.study import on_interrupt

log = logging.getLogger(__name__)

RESUMED = ("best_value", "best_step", "stale", "curve")
COUNTED = ("tokens", "stopped")
"""Attributes of a full tuning and of its training that a checkpoint has, beside the tensors."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""What AdamW keeps of each parameter."""
STATE, BEST = "training", "best"


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
        self.stale = 0
        self.curve: list[str] = []
        self.resumed_after = 0
        self.earlier_seconds = 0.0
        self._interrupted = False
        self._written = time.monotonic()

    def on_train_begin(self, training: Training) -> None:
        """Before the first step of this process: restore the state of a checkpoint."""
        self._written = time.monotonic()
        if self.folder is None:
            return
        found = read_checkpoint(self.checkpoint, training, self.identity)
        if found is not None:
            self.best, more = found
            vars(self).update({name: more[name] for name in RESUMED})
            self.resumed_after = training.step
        self.earlier_seconds = training.earlier_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        # Steps after the checkpoint are made again.
        write_text(self.folder / CURVE_FILE, "".join(self.curve))

    def on_step_end(self, training: Training) -> bool:
        """After a step: look at validation rows and write a checkpoint, if it is time. Returns whether to stop."""
        settings = self.settings
        step = training.step
        is_last = training.step == training.steps
        figures = {"loss": training.losses[-1], "rate": training.last_rate, "tokens": float(training.tokens)}
        if settings.evaluate_every and (is_last or step % settings.evaluate_every == 0):
            figures["validation_loss"] = loss = self.validate()
            self.stale += 1
            if loss < self.best_value:
                self.best_value = loss
                self.best_step = step
                self.stale = 0
                self.best = {name: p.detach().cpu().clone() for name, p in named_parameters(training)}
        self._write_step(step, figures)
        stop = bool(settings.patience) and self.stale >= settings.patience
        # What comes while this waits is for the next step.
        interrupted = self._interrupted
        needed = is_last or stop or interrupted
        due = bool(settings.checkpoint_every) and step % settings.checkpoint_every == 0
        minutes = (time.monotonic() - self._written) / 60
        due = needed or due or 0 < settings.checkpoint_minutes <= minutes
        if self.folder is not None and due:
            training.stopped = stop and not is_last
            more = {name: getattr(self, name) for name in RESUMED}
            try:
                write_checkpoint(self.checkpoint, training, self.best, {"identity": self.identity, **more})
            except OSError as error:
                if needed:
                    raise
                log.warning("could not write the checkpoint at step %d; training continues: %s", step, error)
            self._written = time.monotonic()
        if interrupted:
            raise KeyboardInterrupt(f"step {step} of {training.steps} is saved")
        return stop

    def save_on_interrupt(self) -> AbstractContextManager[None]:
        """Ctrl-C writes a checkpoint after the running step and then ends the tuning; a second one ends it at once."""

        def request_interrupt() -> None:
            self._interrupted = True

        return nullcontext() if self.folder is None else on_interrupt(request_interrupt)

    def on_train_end(self, training: Training) -> None:
        """Put the best parameters in place, if there are any."""
        if self.best:
            for name, parameter in named_parameters(training):
                parameter.data.copy_(self.best[name])

    def _write_step(self, step: int, figures: dict[str, float]) -> None:
        if self.folder is not None:
            self.curve.append(json.dumps({"step": step, **figures}) + "\n")
            try:
                with (self.folder / CURVE_FILE).open("a") as file:
                    file.write(self.curve[-1])
            except OSError as error:
                log.warning("could not write step %d to %s; training continues: %s", step, CURVE_FILE, error)
        if self.on_step is not None:
            self.on_step(step, figures)

    @property
    def checkpoint(self) -> Path:
        assert self.folder is not None
        return self.folder / CHECKPOINT_FILE


# -- checkpoints -------------------------------------------------------------------------------
def write_checkpoint(
    path: Path, training: Training, best: Mapping[str, Tensor], more: Mapping[str, Any]
) -> None:
    """Write all that the next step depends on, the best parameters so far, and `more`, plain data of the caller."""
    tensors = {
        "losses": torch.tensor(training.losses, dtype=torch.float64),
        "generator::cpu": torch.get_rng_state(),
    }
    if training.device.type == "cuda":
        tensors["generator::cuda"] = torch.cuda.get_rng_state(training.device)
    for name, parameter in named_parameters(training):
        tensors[f"value::{name}"] = parameter.detach()
        kept = training.optimizer.state[parameter]
        tensors |= {f"{moment}::{name}": kept[moment] for moment in MOMENTS if moment in kept}
    tensors |= {f"{BEST}::{name}": tensor for name, tensor in best.items()}
    state = {name: getattr(training, name) for name in (*COUNTED, "seconds")}
    write_tensors(tensors, path, metadata={STATE: json.dumps({**state, **more})}, durable=True)


def read_checkpoint(
    path: Path, training: Training, identity: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Restore a training from a checkpoint, and return the best parameters and the caller's data.

    None if there is no checkpoint, or one of another identity; raises RunFailed if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        file = open_tensors(path)
        state = json.loads(file.metadata()[STATE])
        if state["identity"] != json.loads(json.dumps(identity)):
            return None
        keys = set(file.keys())
        for name, parameter in named_parameters(training):
            parameter.data.copy_(file.get_tensor(f"value::{name}"))
            moments = {part: file.get_tensor(key) for part in MOMENTS if (key := f"{part}::{name}") in keys}
            if moments:
                training.optimizer.state[parameter] = {
                    part: moment.clone().to(parameter.device) for part, moment in moments.items()
                }
        training.losses = file.get_tensor("losses").tolist()
        training.earlier_seconds = state.pop("seconds")
        for name in COUNTED:
            setattr(training, name, state.pop(name))
        torch.set_rng_state(file.get_tensor("generator::cpu"))
        if "generator::cuda" in keys:
            torch.cuda.set_rng_state(file.get_tensor("generator::cuda"), training.device)
        saved = [key for key in keys if key.startswith(f"{BEST}::")]
        return {key.removeprefix(f"{BEST}::"): file.get_tensor(key).clone() for key in saved}, state
    except (TypeError, LookupError, ValueError, RuntimeError, SafetensorError) as error:
        raise RunFailed(f"{path} is damaged ({error}): delete it to train from the beginning") from error


def named_parameters(training: Training) -> Iterator[tuple[str, nn.Parameter]]:
    """All that is trained, by name."""
    return ((name, parameter) for group in training.groups for name, parameter in group.parameters.items())
