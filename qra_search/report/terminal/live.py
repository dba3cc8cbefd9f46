"""The view of a run while it runs: bars and the best so far in a terminal, lines elsewhere, nothing with `--json`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from qra_search.log.trial import Trial
from qra_search.report.formatting import duration, evaluations_text, percent, plan_name
from qra_search.report.progress import BestSoFar
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
BAR_WIDTH = 36
BAR_STYLE = "cyan"


@dataclass
class Stage:
    """A piece of work that counts its progress.

    Attributes:
        paced: when the first step ended, and how many were done then: it may include work that is done once.
        printed: when a line was last printed of it.
    """

    name: str
    total: float
    started: float
    done: float = 0.0
    paced: tuple[float, float] | None = None
    printed: float = 0.0

    def moved(self, done: float, total: float) -> None:
        """Take note of the progress."""
        self.done, self.total = done, total
        if done and self.paced is None:
            self.paced = time.monotonic(), done

    @property
    def count(self) -> str:
        """How much is done: `3 of 12`."""
        return f"{evaluations_text(self.done)} of {evaluations_text(self.total)}"

    @property
    def left(self) -> str:
        """The time that it still takes at its pace since the first step; empty before the second."""
        if self.paced is None or self.done <= self.paced[1]:
            return ""
        since, first = self.paced
        seconds = (time.monotonic() - since) / (self.done - first) * max(0.0, self.total - self.done)
        return f"about {duration(seconds)} left"


class View(Listener):
    """Follows a run and shows nothing: the base of the others, and what `--json` uses."""

    def __init__(self) -> None:
        self.stage: Stage | None = None
        self.search: Stage | None = None
        """The evaluations of the study, once it has started."""
        self.best = BestSoFar()
        self._began = time.monotonic()

    @property
    def space(self) -> SearchSpace:
        """What is searched; only once a study has started."""
        assert self.best.space is not None
        return self.best.space

    def progress(self, stage: str, done: int, total: int) -> None:
        """The progress of the evaluator's own work: `("quantize", 12, 210)`."""
        if self.stage is None or self.stage.name != stage or done < self.stage.done:
            self.stage = Stage(stage, total, time.monotonic(), done if done < total else 0)
            self.stage_began(self.stage)
        self.stage.moved(done, total)
        self.stage_moved(self.stage)
        if total and done >= total:
            self.stage_ended(self.stage)
            self.stage = None

    def started(self, study: Study) -> None:
        self.best, now = BestSoFar.of(study), time.monotonic()
        spent = self.best.spent
        self.search = Stage("evaluations", study.evaluations, now, spent, paced=(now, spent))

    def finished(self, study: Study, trial: Trial) -> None:
        self.best.add(trial)
        assert self.search is not None
        self.search.moved(self.best.spent, study.evaluations)
        self.trial_finished(trial, self.search)

    def stage_began(self, stage: Stage) -> None: ...

    def stage_moved(self, stage: Stage) -> None: ...

    def stage_ended(self, stage: Stage) -> None:
        elapsed = time.monotonic() - stage.started
        if self.search is None and elapsed >= PATIENCE:
            self.say(f"{stage.name}: done in {duration(elapsed)}")

    def trial_finished(self, trial: Trial, search: Stage) -> None: ...


class PlainView(View):
    """One line for each thing that happens, for logs and pipes."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self._printed = -math.inf

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def stage_began(self, stage: Stage) -> None:
        if self.search is None:
            stage.printed = time.monotonic()
            self.say(f"{stage.name} ..." if stage.total <= 1 else f"{stage.name}: {stage.count}")

    def stage_moved(self, stage: Stage) -> None:
        now = time.monotonic()
        since = max(stage.printed or stage.started, self._printed)
        if stage.done < stage.total and now - since >= PLAIN_EVERY:
            stage.printed = now
            self.say(", ".join(filter(None, (f"{stage.name}: {stage.count}", stage.left))))

    def trial_finished(self, trial: Trial, search: Stage) -> None:
        now, ended = time.monotonic(), search.done >= search.total
        if now - self._printed < TRIAL_LINES_EVERY and not ended and trial.done:
            return
        self._printed = now
        self.say(f"[{search.count.replace(' of ', '/')}] {trial_text(trial, self.space)}")
        if ended or self.best.count % 10 == 0:
            for budget in self.best.budgets[-BUDGETS_SHOWN:]:
                if line := best_text(self.best, budget):
                    self.say(f"    {line}")
            if not ended:
                self.say(f"    {search.left}")


class RichView(View):
    """Bars and the best so far, which are drawn anew four times a second."""

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

    def render(self) -> Group:
        """What the terminal shows now."""
        bars = Table.grid(padding=(0, 2))
        for stage in filter(None, (self.search, self.stage)):
            bar = ProgressBar(
                total=stage.total or None, completed=min(stage.done, stage.total), width=BAR_WIDTH,
                pulse=not stage.total, complete_style=BAR_STYLE, finished_style=BAR_STYLE, pulse_style=BAR_STYLE,
            )  # fmt: skip
            failed = f", {self.best.failed} failed" if stage is self.search and self.best.failed else ""
            bars.add_row(Text(stage.name), bar, Text(f"{stage.count}{failed}" if stage.total else ""), stage.left)
        bars.add_row(Text("time", style="dim"), Text(duration(time.monotonic() - self._began), style="dim"), "", "")
        if self.search is None:
            return Group(bars)
        lines = [best_text(self.best, budget) for budget in self.best.budgets[-BUDGETS_SHOWN:]]
        if self.best.last is not None:
            lines.append(f"last: {trial_text(self.best.last, self.space)}")
        return Group(bars, Text(), *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines if line))


def make_view(console: Console, *, quiet: bool = False) -> View:
    """The view that suits a console: nothing, plain lines, or bars and the best so far."""
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


def best_text(found: BestSoFar, budget: int) -> str:
    """The best plan within a budget in one line; empty if none fits."""
    best = found.best(budget)
    if best is None:
        return ""
    rival = found.best(budget, uniform=True)
    text = f"within {format_bytes(budget)}: lowest seen {best[1]:.4f}"
    if rival is None:
        return f"{text}, no uniform plan fits"
    gain = found.gain(budget)
    return f"{text}, uniform {rival[1]:.4f}" + (f", {percent(gain)} lower" if gain > 0 else ", not beaten yet")
