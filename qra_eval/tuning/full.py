"""The callback of a full tuning: looks at validation rows, keeps the best adapters, writes checkpoints and curve."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from qra_eval.tuning.checkpoint import named_parameters, read_checkpoint, write_checkpoint
from qra_eval.tuning.processes import ALONE, Processes
from qra_eval.tuning.training import TrainerCallback, Training
from qra_search.app.tuning_folder import CHECKPOINT_FILE, CURVE_FILE
from qra_search.errors import RunFailed
from qra_search.evaluation.evaluator import StepFigures
from qra_search.files import write_text
from qra_search.sections import FinetuneConfig
from qra_search.study.interrupt import on_interrupt

log = logging.getLogger(__name__)

RESUMED = ("best_value", "best_step", "stale", "curve")
"""Attributes that are read back from a checkpoint, beside the best parameters."""


class FullTuning(TrainerCallback):
    """Follows a full tuning, so that it can be stopped at any step and resumed.

    Resumed on the same machine, the training ends in the same numbers as one that was never stopped. A checkpoint is
    always written after the last step, so that measuring and saving can be resumed as well.

    Args:
        validate: figures on validation rows of the model as it is, by name; the last is to become low. It leaves the
            model in training mode.
        identity: what the training depends on, as plain data; the checkpoint of another one is not resumed.
        folder: of checkpoint and curve; None: neither is written.
        processes: that tune together: all read the checkpoint, the first writes it.
        on_step: called with each step and its figures.

    Attributes:
        best_value, best_step: the lowest value on validation rows, and its step; None if it was never looked at.
        earlier_seconds: spent on the training before it was resumed.
        resumed_after: the step of the checkpoint that it was resumed from; 0: it began anew.
    """

    def __init__(
        self,
        settings: FinetuneConfig,
        validate: Callable[[], Mapping[str, float]],
        identity: Mapping[str, Any],
        folder: Path | None = None,
        on_step: Callable[[int, StepFigures], None] | None = None,
        processes: Processes = ALONE,
    ):
        self.settings, self.validate, self.identity, self.on_step = settings, validate, identity, on_step
        self.folder, self.processes = folder, processes
        self.best: dict[str, Tensor] = {}
        self.best_value, self.stale = float("inf"), 0
        self.best_step: int | None = None
        self.curve: list[str] = []
        self.resumed_after, self._interrupted = 0, False
        self._written, self.earlier_seconds = time.monotonic(), 0.0

    def on_train_begin(self, training: Training) -> None:
        self._written = time.monotonic()
        if self.folder is None:
            return
        found = read_checkpoint(self.checkpoint, training, self.identity)
        if found is not None:
            self.best, more = found
            vars(self).update({name: more[name] for name in RESUMED})
            self.resumed_after = training.step
        self.earlier_seconds = training.earlier_seconds
        if self.processes.sum_values(training.step) != [training.step * self.processes.size]:
            raise RunFailed(
                f"the processes of this tuning found different checkpoints in {self.folder}, so they do not share "
                "this folder. Put the run on a disk that all of them mount"
            )
        if self.processes.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(
                self.folder / CURVE_FILE, "".join(self.curve)
            )  # steps after the checkpoint are made again

    def on_step_end(self, training: Training) -> bool:
        settings, step, is_last = self.settings, training.step, training.step == training.steps
        figures = {"loss": training.losses[-1], "rate": training.last_rate, "tokens": float(training.tokens)}
        if settings.evaluate_every and (is_last or step % settings.evaluate_every == 0):
            figures |= self.validate()
            *_, value = figures.values()
            self.stale += 1
            if value < self.best_value:
                self.best_value, self.best_step, self.stale = value, step, 0
                self.best = {
                    name: parameter.detach().cpu().clone() for name, parameter in named_parameters(training)
                }
        self._write_step(step, figures)
        stop = bool(settings.patience) and self.stale >= settings.patience
        interrupted = self.processes.any_process(
            self._interrupted
        )  # what comes while this waits is for the next step
        needed = is_last or stop or interrupted
        due = bool(settings.checkpoint_every) and step % settings.checkpoint_every == 0
        minutes = (time.monotonic() - self._written) / 60
        due = needed or due or 0 < settings.checkpoint_minutes <= minutes
        if self.folder is not None and due and self.processes.rank == 0:
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
        return nullcontext() if self.folder is None else on_interrupt(self._interrupt)

    def _interrupt(self) -> None:
        self._interrupted = True

    def on_train_end(self, training: Training) -> None:
        """Put the best parameters in place, if there are any."""
        if self.best:
            for name, parameter in named_parameters(training):
                parameter.data.copy_(self.best[name])

    def _write_step(self, step: int, figures: dict[str, float]) -> None:
        if self.folder is not None and self.processes.rank == 0:
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
