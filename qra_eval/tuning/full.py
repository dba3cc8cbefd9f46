"""The callback of a full tuning: looks at validation rows, keeps the best adapters, writes checkpoints and curve."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qra_eval.quantized.bank import open_tensors, write_tensors
from qra_eval.tuning.training import TrainerCallback, Training
from qra_search.app.evaluator import StepFigures
from qra_search.app.tuning_folder import CHECKPOINT_FILE, CURVE_FILE
from qra_search.errors import RunFailed
from qra_search.files import write_text
from qra_search.sections import FinetuneConfig
from qra_search.study.study import on_interrupt

log = logging.getLogger(__name__)

RESUMED = ("best_value", "best_step", "curve")
"""Attributes of a full tuning that a checkpoint has."""


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
        self._interrupted = False
        self._written = time.monotonic()

    @property
    def checkpoint(self) -> Path:
        assert self.folder is not None
        return self.folder / CHECKPOINT_FILE

    def on_train_begin(self, training: Training) -> None:
        self._written = time.monotonic()
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
        interrupted = self._interrupted
        minutes = (time.monotonic() - self._written) / 60
        if self.folder is not None and (is_last or interrupted or minutes >= settings.checkpoint_minutes):
            try:
                self._write_checkpoint(training)
            except OSError as error:
                if is_last or interrupted:
                    raise
                log.warning("could not write the checkpoint at step %d; training continues: %s", step, error)
            self._written = time.monotonic()
        if interrupted:
            raise KeyboardInterrupt(f"step {step} of {training.steps} is saved")
        return False

    def save_on_interrupt(self) -> AbstractContextManager[None]:
        """Ctrl-C writes a checkpoint after the running step and then ends the tuning; a second one ends it at once."""

        def request_interrupt() -> None:
            self._interrupted = True

        return nullcontext() if self.folder is None else on_interrupt(request_interrupt)

    def on_train_end(self, training: Training) -> None:
        """Put the best parameters in place, if there are any."""
        for name, tensor in self.best.items():
            get_parameters(training)[name].data.copy_(tensor)

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
            "full": {name: getattr(self, name) for name in RESUMED},
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
