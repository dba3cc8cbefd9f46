"""The callback of a full tuning: measures validation loss, keeps the best adapters, writes checkpoints and curve."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from qra_eval.tuning.checkpoint import named, read_checkpoint, write_checkpoint
from qra_eval.tuning.processes import ALONE, Processes
from qra_eval.tuning.training import TrainerCallback, Training
from qra_search.config import FinetuneConfig
from qra_search.errors import RunFailed
from qra_search.evaluation.evaluator import Figures
from qra_search.files import write_text
from qra_search.study.interrupt import on_interrupt

CHECKPOINT_FILE = "checkpoint.safetensors"
CURVE_FILE = "curve.jsonl"


class FullTuning(TrainerCallback):
    """Follows a full tuning, so that it can be stopped at any step and resumed.

    Resumed on the same machine, the training ends in the same numbers as one that was never stopped. A checkpoint is
    always written after the last step, so that measuring and saving can be resumed as well.

    Args:
        validate: the validation loss of the model as it is; leaves it in training mode.
        identity: what the training depends on, as plain data; a checkpoint of another training is not resumed.
        folder: of checkpoint and curve; None: neither is written.
        processes: that tune together: all read the checkpoint, the first writes it.
        figures: called with the figures of each step.

    Attributes:
        best_step: the step of the lowest validation loss; None if it was never looked at.
        earlier_seconds: spent on the training before it was resumed.
        resumed_after: the step of the checkpoint that it was resumed from; 0: it began anew.
    """

    def __init__(
        self,
        settings: FinetuneConfig,
        validate: Callable[[], float],
        identity: Mapping[str, Any],
        folder: Path | None = None,
        figures: Figures | None = None,
        processes: Processes = ALONE,
    ):
        self.settings, self.validate, self.identity, self.figures = settings, validate, identity, figures
        self.folder, self.processes = folder, processes
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.stale = float("inf"), 0
        self.best_step: int | None = None
        self.resumed_after, self._interrupted = 0, False
        self._began = self._written = time.monotonic()
        self.earlier_seconds = 0.0

    def begin(self, training: Training) -> None:
        self._began = self._written = time.monotonic()
        if self.folder is None:
            return
        found = read_checkpoint(self.folder / CHECKPOINT_FILE, training, self.identity)
        if found is not None:
            self.best, more = found
            self.best_loss = float("inf") if more["best_loss"] is None else more["best_loss"]
            self.best_step, self.stale = more["best_step"], more["stale"]
            self.resumed_after = training.step
        self.earlier_seconds = training.seconds
        if self.processes.total(training.step) != [training.step * self.processes.size]:
            raise RunFailed(f"not all processes see the same checkpoint in {self.folder}: they need one shared folder")
        if self.processes.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._cut_curve(training.step)

    def after(self, training: Training) -> bool:
        told = {"loss": training.losses[-1], "rate": training.last_rate, "tokens": float(training.tokens)}
        last = training.step == training.steps
        every = self.settings.evaluate_every
        if every and (last or training.step % every == 0):
            told["validation_loss"] = self._look(training)
        self._tell(training.step, told)
        stop = bool(self.settings.patience) and self.stale >= self.settings.patience
        self._interrupted = self.processes.any(self._interrupted)
        due = last or stop or self._interrupted or self._due(training.step)
        if self.folder is not None and due and self.processes.rank == 0:
            training.stopped = stop and not last
            training.seconds = self.earlier_seconds + time.monotonic() - self._began
            more = {
                "best_loss": self.best_loss if self.best else None, "best_step": self.best_step, "stale": self.stale,
            }  # fmt: skip
            write_checkpoint(self.folder / CHECKPOINT_FILE, training, self.identity, self.best, more)
            training.seconds, self._written = self.earlier_seconds, time.monotonic()
        if self._interrupted:
            raise KeyboardInterrupt(f"step {training.step} of {training.steps} is saved")
        return stop

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Ctrl-C writes a checkpoint after the running step and then ends the tuning; a second one ends it at once."""

        def stop() -> None:
            self._interrupted = True

        with on_interrupt(stop) if self.folder is not None else nullcontext():
            yield

    def ended(self, training: Training) -> None:
        """Put the parameters of the lowest validation loss in place, if there are any."""
        if self.best:
            for name, parameter in named(training):
                parameter.data.copy_(self.best[name])

    def forget(self) -> None:
        """Remove the checkpoint: what was tuned is kept elsewhere."""
        if self.folder is not None and self.processes.rank == 0:
            (self.folder / CHECKPOINT_FILE).unlink(missing_ok=True)

    def _look(self, training: Training) -> float:
        loss = self.validate()
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.stale = loss, training.step, 0
            self.best = {name: parameter.detach().cpu().clone() for name, parameter in named(training)}
        else:
            self.stale += 1
        return loss

    def _due(self, step: int) -> bool:
        every, minutes = self.settings.checkpoint_every, self.settings.checkpoint_minutes
        by_time = bool(minutes) and time.monotonic() - self._written >= 60 * minutes
        return by_time or (bool(every) and step % every == 0)

    def _tell(self, step: int, told: dict[str, float]) -> None:
        if self.folder is not None and self.processes.rank == 0:
            with (self.folder / CURVE_FILE).open("a") as file:
                file.write(json.dumps({"step": step, **told}) + "\n")
        if self.figures is not None:
            self.figures(step, told)

    def _cut_curve(self, step: int) -> None:
        """Drop the steps after the checkpoint, which are made again, and a line that a kill cut off."""
        assert self.folder is not None
        path = self.folder / CURVE_FILE
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        write_text(path, "".join(lines[:step]))
