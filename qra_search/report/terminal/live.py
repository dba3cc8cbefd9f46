"""The view of a run while it runs: bars and tables in a terminal, plain lines elsewhere, nothing with `--json`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qra_search.log.trial import Trial
from qra_search.report.formatting import duration, evaluations_text, percent, plan_name
from qra_search.report.progress import BestSoFar, size_of
from qra_search.report.terminal.columns import columns
from qra_search.space.memory import format_bytes
from qra_search.space.space import SearchSpace
from qra_search.study.listener import Listener
from qra_search.study.study import Study

PATIENCE = 2.0
"""Seconds after which a stage is worth a line of its own."""
PLAIN_EVERY = 15.0
"""Seconds between plain lines of a stage that goes on."""
TRIAL_LINES_EVERY = 1.0
"""Least seconds between plain lines of finished evaluations: cheap evaluators finish hundreds a second."""
BUDGETS_SHOWN = 6
FRONT_SHOWN = 5
BAR_WIDTH = 36
BAR_STYLE = "cyan"

T = TypeVar("T")


@dataclass
class Stage:
    """A piece of work that counts its progress."""

    name: str
    total: int
    started: float
    done: int = 0
    printed: float = 0.0
    paced: tuple[float, int] | None = None
    """When the first step ended, and how many were done then: it may hold work that is done once."""

    def moved(self, done: int, total: int) -> None:
        """Take note of the progress."""
        self.done, self.total = done, total
        if done and self.paced is None:
            self.paced = time.monotonic(), done

    @property
    def left(self) -> float:
        """Seconds that it still takes at its pace since the first step; nan before the second."""
        if self.paced is None or self.done <= self.paced[1]:
            return math.nan
        since, first = self.paced
        return (time.monotonic() - since) / (self.done - first) * (self.total - self.done)


class View(Listener):
    """Follows a run and shows nothing: the base of the others, and what `--json` uses."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.study: Study | None = None
        self.standing = BestSoFar()
        self._began = time.monotonic()

    @property
    def space(self) -> SearchSpace:
        """What is searched; only once a study has started."""
        assert self.study is not None
        return self.study.space

    def progress(self, stage: str, done: int, total: int) -> None:
        """The evaluator's account of its own work: `("quantize", 12, 210)`."""
        if self.stage is None or self.stage.name != stage or done < self.stage.done:
            self.stage = Stage(stage, total, time.monotonic(), done if done < total else 0)
            self.stage_began(self.stage)
        self.stage.moved(done, total)
        self.stage_moved(self.stage)
        if total and done >= total:
            self.stage_ended(self.stage)
            self.stage = None

    def started(self, study: Study) -> None:
        self.study = study
        self.standing = BestSoFar.of(study)

    def finished(self, study: Study, trial: Trial) -> None:
        self.standing.add(trial)
        self.trial_finished(trial)

    def stage_began(self, stage: Stage) -> None: ...

    def stage_moved(self, stage: Stage) -> None: ...

    def stage_ended(self, stage: Stage) -> None: ...

    def trial_finished(self, trial: Trial) -> None: ...


class PlainView(View):
    """One line for each thing that happens, for logs and pipes."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self._printed = -math.inf

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def stage_began(self, stage: Stage) -> None:
        if self.study is None:
            stage.printed = time.monotonic()
            self.say(f"{stage.name} ..." if stage.total <= 1 else f"{stage.name}: {stage.done} of {stage.total}")

    def stage_moved(self, stage: Stage) -> None:
        now = time.monotonic()
        since = max(stage.printed or stage.started, self._printed)
        if stage.done < stage.total and now - since >= PLAIN_EVERY:
            stage.printed = now
            left = _left_text(stage.left)
            self.say(f"{stage.name}: {stage.done} of {stage.total}" + (f", {left}" if left else ""))

    def stage_ended(self, stage: Stage) -> None:
        elapsed = time.monotonic() - stage.started
        if self.study is None and elapsed >= PATIENCE:
            self.say(f"{stage.name}: done in {duration(elapsed)}")

    def trial_finished(self, trial: Trial) -> None:
        now, standing = time.monotonic(), self.standing
        ended = standing.spent >= standing.evaluations
        if now - self._printed < TRIAL_LINES_EVERY and not ended and trial.done:
            return
        self._printed = now
        spent = f"{evaluations_text(standing.spent)}/{evaluations_text(standing.evaluations)}"
        self.say(f"[{spent}] {trial_text(trial, self.space)}")
        if ended or standing.count % 10 == 0:
            for budget in standing.budgets[-BUDGETS_SHOWN:]:
                if line := best_text(standing, budget):
                    self.say(f"    {line}")
            if not ended:
                self.say(f"    about {duration(standing.left)} left")


class RichView(View):
    """Bars and tables that are drawn anew four times a second."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4, transient=True)

    def __enter__(self) -> RichView:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, emoji=False)

    def stage_ended(self, stage: Stage) -> None:
        elapsed = time.monotonic() - stage.started
        if self.study is None and elapsed >= PATIENCE:
            self.say(f"  {stage.name}: {stage.total} of {stage.total} in {duration(elapsed)}")

    def render(self) -> Group:
        """What the terminal shows now."""
        parts: list[Any] = [self._bars()]
        if self.study is not None:
            parts += [Text(), self._best(), self._front(), Text(), self._last()]
        return Group(*parts)

    def _bars(self) -> Table:
        grid = Table.grid(padding=(0, 2))
        if self.study is not None:
            s = self.standing
            done = f"{evaluations_text(s.spent)} of {evaluations_text(s.evaluations)}"
            if s.failed:
                done += f", {s.failed} failed"
            grid.add_row(
                Text("evaluations", style="bold"),
                _bar(s.evaluations, min(s.spent, s.evaluations)),
                Text(done),
                Text(_left_text(s.left), style="dim"),
            )
        stage = self.stage
        if stage is not None:
            total = stage.total or None
            grid.add_row(
                Text(stage.name),
                _bar(total, stage.done),
                Text(f"{stage.done} of {stage.total}" if total else ""),
                Text(_left_text(stage.left) if stage.total > 1 else "", style="dim"),
            )
        grid.add_row(Text("time", style="dim"), Text(duration(time.monotonic() - self._began), style="dim"), "", "")
        return grid

    def _best(self) -> Table:
        table = columns(
            "within", "lowest seen", "size", "lowest uniform", "lower by", left=("lowest seen", "lowest uniform")
        )
        for budget in _spread(self.standing.budgets, BUDGETS_SHOWN):
            best = self.standing.best(budget)
            if best is None:
                continue
            rival = self.standing.best(budget, uniform=True)
            gain = self.standing.gain(budget)
            table.add_row(
                format_bytes(budget),
                Text(f"{best[1]:.4f}", style="bold green" if gain > 0 else "bold"),
                format_bytes(size_of(best[0])),
                f"{rival[1]:.4f}  {plan_name(rival[0].plan, self.space)}" if rival else "none fits",
                percent(gain) if gain > 0 else "not yet",
            )
        return table

    def _front(self) -> Text:
        front = self.standing.front()
        text = Text(f"front of {len(front)}: ", style="dim", no_wrap=True, overflow="ellipsis")
        shown = " · ".join(f"{loss:.4f} at {format_bytes(size)}" for size, loss in _spread(front, FRONT_SHOWN))
        return text.append(shown, style="not dim") if front else Text()

    def _last(self) -> Table:
        table = columns("last", "loss", "predicted", "size", "from", "time", left=("from",))
        for trial in reversed(self.standing.last):
            expected = trial.proposal.predicted_loss
            if trial.evaluation is None:
                table.add_row(str(trial.id), Text("failed", style="red"), "", "", Text(trial.reason[:60]), "")
                continue
            table.add_row(
                str(trial.id),
                f"{trial.loss:.4f}",
                "" if expected is None else f"{expected:.4f}",
                format_bytes(trial.evaluation.memory_bytes),
                Text(trial.proposal.origin),
                duration(trial.evaluation.seconds),
            )
        return table


def make_view(console: Console, *, quiet: bool = False) -> View:
    """The view that suits a console: nothing, plain lines, or bars and tables."""
    if quiet:
        return View()
    return RichView(console) if console.is_terminal and not console.is_dumb_terminal else PlainView(console)


def trial_text(trial: Trial, space: SearchSpace) -> str:
    """A finished trial in one line."""
    where = f"#{trial.id} {trial.proposal.origin or 'proposal'}"
    if trial.evaluation is None:
        return f"{where}: failed, {trial.reason}"
    expected = trial.proposal.predicted_loss
    predicted = "" if expected is None else f" (predicted {expected:.4f})"
    size, seconds = format_bytes(trial.evaluation.memory_bytes), duration(trial.evaluation.seconds)
    return f"{where}: loss {trial.loss:.4f}{predicted}, {size}, {plan_name(trial.plan, space)}, {seconds}"


def best_text(standing: BestSoFar, budget: int) -> str:
    """The best plan within a budget in one line; empty if none fits."""
    best = standing.best(budget)
    if best is None:
        return ""
    rival = standing.best(budget, uniform=True)
    text = f"within {format_bytes(budget)}: lowest seen {best[1]:.4f}"
    if rival is None:
        return f"{text}, no uniform plan fits"
    gain = standing.gain(budget)
    return f"{text}, uniform {rival[1]:.4f}" + (f", {percent(gain)} lower" if gain > 0 else ", not beaten yet")


def _bar(total: float | None, done: float) -> ProgressBar:
    return ProgressBar(
        total=total, completed=done, width=BAR_WIDTH, pulse=total is None, complete_style=BAR_STYLE,
        finished_style=BAR_STYLE, pulse_style=BAR_STYLE,
    )  # fmt: skip


def _left_text(seconds: float) -> str:
    return f"about {duration(seconds)} left" if math.isfinite(seconds) else ""


def _spread(values: Sequence[T], most: int) -> list[T]:
    """At most so many of the values, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
