"""What a run shows while it runs: bars in a terminal or a notebook, lines elsewhere."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, Task, TextColumn
from rich.text import Text

from qra_search.app.report.formatting import format_evaluations, format_percent, format_plan, format_time
from qra_search.errors import wrong_type
from qra_search.evaluator import Progress as ProgressFunction
from qra_search.schemas import Plan, Trial
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.listener import Listener
from qra_search.study.study import Study

LONG_STAGE = 2.0
"""Seconds after which the end of a stage is worth a line."""
STAGE_EVERY = 15.0
"""Least seconds between lines of a stage."""
PACE_SECONDS = 600.0
"""The time left follows from the pace of so many seconds."""
BUDGETS_SHOWN = 6
ProgressArgument = bool | ProgressFunction | Listener | None
"""A function of (stage, done, total), True for a view, False for nothing, None for a view that is brief in a log."""


def make_listener(progress: ProgressArgument) -> Listener:
    """The listener that a `progress` argument asks for; raises BadInput if it is not a `ProgressArgument`."""
    if isinstance(progress, Listener):
        return progress
    if progress is False:
        return Listener()
    if progress is None or progress is True:
        if not Console().is_jupyter:
            return ConsoleView(Console(stderr=True, highlight=False, emoji=False), is_brief=progress is None)
        # rich draws bars in a notebook if `ipywidgets` is installed.
        return ConsoleView(
            Console() if importlib.util.find_spec("ipywidgets") else Console(force_jupyter=False)
        )
    if callable(progress):
        return Listener(progress)
    raise wrong_type(
        "progress", progress, "True, False, or a function of a stage, the steps done and all its steps"
    )


class BestSoFar:
    """Best plan for each budget by the mean of its losses, and what was spent."""

    def __init__(self, budgets: Sequence[int] = (), spent: float = 0.0, space: SearchSpace | None = None):
        self.budgets, self.spent, self.space = tuple(budgets), spent, space
        self.count = self.failed = 0
        self.last: Trial | None = None
        self._losses: dict[Plan, list[float]] = {}
        self._sizes: dict[Plan, int] = {}

    @classmethod
    def from_study(cls, study: Study, trials: Iterable[Trial] | None = None) -> BestSoFar:
        """What a study has found in its trials; default: in all of its log."""
        best = cls(study.state.budgets, study.state.charge, study.space)
        for trial in study.log.trials if trials is None else trials:
            if trial.status != "running":
                best.add(trial)
        return best

    def add(self, trial: Trial) -> None:
        self.count += 1
        self.spent += trial.fidelity
        self.last = trial
        if not trial.done:
            self.failed += 1
        elif trial.evaluation is not None and trial.fidelity >= 1.0:
            self._losses.setdefault(trial.plan, []).append(trial.loss)
            self._sizes[trial.plan] = trial.evaluation.memory_bytes

    def find_lowest_loss(self, budget: int, *, uniform: bool = False) -> float | None:
        """The lowest mean loss of a plan within a budget; None if none fits."""
        fitting = [plan for plan, size in self._sizes.items() if size <= budget]
        if uniform:
            space = self.space
            fitting = [
                plan for plan in fitting if space is not None and space.uniform_choice(plan) is not None
            ]
        return min((sum(self._losses[plan]) / len(self._losses[plan]) for plan in fitting), default=None)


class ConsoleView(Listener):
    """Shows a run on a console: bars and the best plans so far if it can redraw lines, else a line for each event.

    Args:
        is_brief: a line for each stage, if lines cannot be redrawn.
    """

    def __init__(self, console: Console, *, is_brief: bool = False):
        self.console, self.best, self.is_brief = console, BestSoFar(), is_brief
        self.can_draw = console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal)
        self.bars = _Bars(self)
        self._stage: Task | None = None
        self.search: Task | None = None
        self._printed = -math.inf

    def __enter__(self) -> ConsoleView:
        self.bars.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bars.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=not self.can_draw)

    def progress(self, stage: str, done: int, total: int) -> None:
        now, current = time.monotonic(), self._stage
        if current is None or current.description != stage or done < current.completed:
            self._remove_stage()
            current = self._stage = self.bars.add(stage, total)
            if not self.can_draw and self.search is None:
                self._printed = now
                self.say(f"{stage} ..." if total <= 1 or self.is_brief else f"{stage}: {done} of {total}")
        self.bars.update(current.id, completed=done, total=total or None)
        if total and done >= total:
            if self.search is None and (current.elapsed or 0.0) >= LONG_STAGE and not self.is_brief:
                self.say(f"{stage}: done in {format_time(current.elapsed or 0.0)}")
            self._remove_stage()
        elif not (self.can_draw or self.is_brief) and now - self._printed >= STAGE_EVERY:
            self._printed = now
            self.say(", ".join(filter(None, (f"{stage}: {done} of {total}", format_time_left(current)))))

    def on_start(self, study: Study) -> None:
        self.best = BestSoFar.from_study(study)
        self.search = self.bars.add("evaluations", study.evaluations, self.best.spent)
        if self.is_brief and not self.can_draw:
            self.say(f"{format_evaluations(study.evaluations)} evaluations ...")

    def on_result(self, study: Study, trial: Trial) -> None:
        assert self.search is not None
        self.best.add(trial)
        self.bars.update(self.search.id, completed=self.best.spent)
        is_last = self.best.spent >= study.evaluations
        if self.can_draw or (self.is_brief and not is_last and trial.done):
            return
        self._printed = time.monotonic()
        spent = f"{format_evaluations(self.best.spent)}/{format_evaluations(study.evaluations)}"
        self.say(f"[{spent}] {format_trial(trial, study.space)}")
        if is_last or self.best.count % 10 == 0:
            for line in format_best_plans(self.best):
                self.say(f"    {line}")
            if not is_last:
                self.say(f"    {format_time_left(self.search)}")

    def _remove_stage(self) -> None:
        if self._stage is not None:
            self.bars.remove_task(self._stage.id)
            self._stage = None


class _Bars(Progress):
    """Bars of a view; below them the best plans and the last trial of its search."""

    def __init__(self, view: ConsoleView):
        self.view = view
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(36),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[elapsed]}"),
        )
        super().__init__(
            *columns,
            console=view.console,
            transient=True,
            disable=not view.can_draw,
            refresh_per_second=4,
            speed_estimate_period=PACE_SECONDS,
            get_time=time.monotonic,
        )

    def add(self, name: str, total: float, completed: float = 0.0) -> Task:
        id = self.add_task(name, total=total or None)
        self.update(id, completed=completed)
        return self._tasks[id]

    def get_renderables(self) -> Iterator[RenderableType]:
        best = self.view.best
        for task in self.tasks:
            count = (
                f"{format_evaluations(task.completed)} of {format_evaluations(task.total)}"
                if task.total
                else ""
            )
            failed = f", {best.failed} failed" if task is self.view.search and best.failed else ""
            task.fields |= {"count": count + failed, "left": format_time_left(task)}
            task.fields["elapsed"] = f"time {format_time(task.elapsed or 0.0)}"
        yield self.make_tasks_table(self.tasks)
        last = (
            []
            if best.last is None or best.space is None
            else [f"last: {format_trial(best.last, best.space)}"]
        )
        yield from (
            Text(line, no_wrap=True, overflow="ellipsis") for line in [*format_best_plans(best), *last]
        )


def format_time_left(task: Task) -> str:
    """The time that a task still takes at its pace, after a twentieth of it: first steps include work done once."""
    left = task.time_remaining
    return "" if left is None or task.percentage < 5 else f"about {format_time(left)} left"


def format_trial(trial: Trial, space: SearchSpace) -> str:
    """A finished trial in one line."""
    where = f"#{trial.id} {trial.proposal.origin or 'proposal'}"
    if trial.evaluation is None:
        return f"{where}: failed, {trial.reason}"
    expected = trial.proposal.predicted_loss
    predicted = "" if expected is None else f" (predicted {expected:.4f})"
    size, seconds = format_bytes(trial.evaluation.memory_bytes), format_time(trial.evaluation.seconds)
    return f"{where}: loss {trial.loss:.4f}{predicted}, {size}, {format_plan(trial.plan, space)}, {seconds}"


def format_best_plans(best: BestSoFar) -> list[str]:
    """The best plan within each of the largest budgets, in one line each; none for a budget that nothing fits yet."""
    lines = []
    for budget in best.budgets[-BUDGETS_SHOWN:]:
        if (found := best.find_lowest_loss(budget)) is None:
            continue
        text = f"within {format_bytes(budget)}: lowest seen {found:.4f}"
        uniform = best.find_lowest_loss(budget, uniform=True)
        if uniform is None:
            lines.append(f"{text}, no uniform plan fits")
            continue
        lower = uniform - found
        gain = f"{format_percent(lower / abs(uniform))} lower" if lower > 0 and uniform else "not beaten yet"
        lines.append(f"{text}, uniform {uniform:.4f}, {gain}")
    return lines
