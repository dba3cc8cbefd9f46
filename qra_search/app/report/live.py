"""What a run shows while it runs: a line for each event, and bars below the lines in a terminal."""

from __future__ import annotations

import math
import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qra_search.app.report.formatting import format_evaluations, format_plan, format_time
from qra_search.errors import make_type_error
from qra_search.evaluator import Progress as ProgressFunction
from qra_search.schemas import Trial
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.study import Listener, Study

LONG_STAGE_SECONDS = 2.0
"""Seconds after which the end of a stage is worth a line."""
STAGE_LINE_SECONDS = 15.0
"""Least seconds between lines of a stage."""
PACE_SECONDS = 600.0
"""The time left follows from the pace of so many seconds."""
ProgressArgument = bool | ProgressFunction | Listener | None
"""A function of (stage, done, total), False for nothing, True or None for a view."""


def make_listener(progress: ProgressArgument) -> Listener:
    """The listener that a `progress` argument asks for; raises BadInput if it is not a `ProgressArgument`."""
    if isinstance(progress, Listener):
        return progress
    if progress is False or callable(progress):
        return Listener(progress or None)
    if progress is not None and progress is not True:
        wanted = "True, False, or a function of (stage, done, total) is needed"
        raise make_type_error("progress", progress, wanted)
    return ConsoleView(Console(stderr=True, highlight=False, emoji=False))


def compute_spent(study: Study) -> float:
    """What a study has spent on trials that have ended, in full evaluations."""
    return study.state.charge + sum(trial.cost for trial in study.log.trials if trial.status != "running")


class ConsoleView(Listener):
    """Shows a run on a console: a line for each event, and bars below them if the console can redraw lines."""

    def __init__(self, console: Console):
        self.console = console
        self.can_draw = console.is_terminal and not console.is_dumb_terminal
        self.bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(36),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not self.can_draw,
            refresh_per_second=4,
            speed_estimate_period=PACE_SECONDS,
            get_time=time.monotonic,
        )
        self.search: Task | None = None
        self._stage: Task | None = None
        self._printed = -math.inf

    def __enter__(self) -> ConsoleView:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=not self.can_draw)

    def progress(self, stage: str, done: int, total: int) -> None:
        current = self._stage
        says = self.search is None and not self.can_draw
        if current is None or current.description != stage or done < current.completed:
            self._remove_stage()
            current = self._stage = self._add_bar(stage, total)
            if says:
                self._printed = time.monotonic()
                self.say(f"{stage} ..." if total <= 1 else f"{stage}: {done} of {total}")
        self.bars.update(current.id, completed=done, total=total or None)
        if total and done >= total:
            if self.search is None and (current.elapsed or 0.0) >= LONG_STAGE_SECONDS:
                self.say(f"{stage}: done in {format_time(current.elapsed or 0.0)}")
            self._remove_stage()
        elif not self.can_draw and time.monotonic() - self._printed >= STAGE_LINE_SECONDS:
            self._printed = time.monotonic()
            self.say(f"{stage}: {done} of {total}{format_time_left(current)}")

    def on_start(self, study: Study) -> None:
        self.search = self._add_bar("evaluations", study.evaluations)
        self.bars.update(self.search.id, completed=compute_spent(study))

    def on_result(self, study: Study, trial: Trial) -> None:
        assert self.search is not None
        done = compute_spent(study)
        self.bars.update(self.search.id, completed=done)
        is_last = done >= study.evaluations
        self._printed = time.monotonic()
        spent = f"{format_evaluations(done)}/{format_evaluations(study.evaluations)}"
        left = "" if is_last or self.can_draw else format_time_left(self.search)
        self.say(f"[{spent}] {format_trial(trial, study.space)}{left}")

    def _add_bar(self, name: str, total: float) -> Task:
        id = self.bars.add_task(name, total=total or None)
        return next(task for task in self.bars.tasks if task.id == id)

    def _remove_stage(self) -> None:
        if self._stage is not None:
            self.bars.remove_task(self._stage.id)
            self._stage = None


def format_time_left(task: Task) -> str:
    """The time that a task still takes at its pace, after a twentieth of it: first steps include work done once."""
    left = task.time_remaining
    return "" if left is None or task.percentage < 5 else f", about {format_time(left)} left"


def format_trial(trial: Trial, space: SearchSpace) -> str:
    """A finished trial in one line."""
    where = f"#{trial.id} {trial.proposal.origin or 'proposal'}"
    if trial.evaluation is None:
        return f"{where}: failed, {trial.reason}"
    expected = trial.proposal.predicted_loss
    predicted = "" if expected is None else f" (predicted {expected:.4f})"
    size = format_bytes(trial.evaluation.memory_bytes)
    seconds = format_time(trial.evaluation.seconds)
    return f"{where}: loss {trial.loss:.4f}{predicted}, {size}, {format_plan(trial.plan, space)}, {seconds}"
