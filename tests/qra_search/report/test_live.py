"""The live view: quiet, plain or drawn; what it says of stages, trials, the best so far and the time left."""

from __future__ import annotations

import io
import math

import pytest
from report_runs import Bits, Guessing, evil_space
from rich.console import Console

from qra_search import Study
from qra_search.report import notebook
from qra_search.report.notebook import progress_view
from qra_search.report.progress import BestSoFar
from qra_search.report.terminal import live
from qra_search.report.terminal.live import PlainView, RichView, View, make_view


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=110, _environ={"TERM": "xterm"})


def text_of(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def study(view: View, evaluations: float = 14) -> Study:
    return Study(
        Bits(evil_space()), strategy=Guessing(), evaluations=evaluations, memory_budget="uniform3r4", callbacks=(view,)
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time as the view sees it, in a list that a test sets."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def test_the_view_suits_where_it_is_seen() -> None:
    assert isinstance(make_view(console(terminal=True)), RichView)
    assert isinstance(make_view(console(terminal=False)), PlainView)
    assert type(make_view(console(terminal=True), quiet=True)) is View
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert isinstance(make_view(dumb), PlainView)


def test_a_quiet_view_says_nothing() -> None:
    on = console(terminal=False)
    view = make_view(on, quiet=True)
    with view:
        view.say("words")
        view.progress("quantize", 1, 2)
        study(view).run()
    assert text_of(on) == ""


def test_plain_lines_name_a_stage_at_once_and_its_pace_when_it_takes_long(clock: list[float]) -> None:
    on = console(terminal=False)
    view = PlainView(on)
    for done in range(0, 101):
        clock[0] = done * 0.5
        view.progress("quantize", done, 100)
    lines = text_of(on).splitlines()
    assert lines[0] == "quantize: 0 of 100"
    assert lines[1] == "quantize: 30 of 100, about 35 s left"
    assert lines[-1] == "quantize: done in 50 s"
    assert len(lines) == 5


def test_a_slow_first_step_is_not_taken_for_the_pace(clock: list[float]) -> None:
    on = console(terminal=False)
    view = PlainView(on)
    for done, clock[0] in ((0, 0.0), (1, 60.0), (2, 61.0), (30, 89.0)):
        view.progress("quantize", done, 200)
    lines = text_of(on).splitlines()
    assert lines[1] == "quantize: 1 of 200"
    assert lines[-1] == "quantize: 30 of 200, about 2 min 50 s left"


def test_plain_trials_say_loss_size_and_the_best_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TRIAL_LINES_EVERY", 0.0)
    on = console(terminal=False)
    running = study(PlainView(on))
    result = running.run()
    lines = text_of(on).splitlines()
    assert sum(line.startswith("[") for line in lines) == len(running.log)
    assert any("predicted 2.0000" in line for line in lines)
    best = result.best()
    assert best is not None
    assert f"lowest seen {best.observed:.4f}" in lines[-1] and "uniform" in lines[-1]


def test_failures_are_always_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TRIAL_LINES_EVERY", math.inf)
    on = console(terminal=False)
    running = study(PlainView(on), evaluations=40)
    running.run()
    failed = [t for t in running.log if t.status == "failed"]
    assert failed
    assert text_of(on).count("failed, EvaluationFailed: out of memory") == len(failed)


def test_the_drawn_view_shows_bars_best_gain_last_trial_and_time_left(clock: list[float]) -> None:
    on = console(terminal=True)
    view = RichView(on)
    running = study(view)

    class Ticking(View):
        def finished(self, study: Study, trial: object) -> None:
            clock[0] += 2.0

    running.callbacks = (Ticking(), view)
    running.run()
    view.progress("evaluate", 3, 12)
    screen = Console(file=io.StringIO(), width=110)
    screen.print(view.render())
    shown = text_of(screen)
    best = view.best.best(running.memory_budgets[0])
    assert best is not None
    for words in (
        "evaluations",
        "lowest seen",
        "uniform",
        f"{best[1]:.4f}",
        "3 of 12",
        f"last: #{running.log.trials[-1].id} ",
        "left",
        "time",
    ):
        assert words in shown
    assert "within " in shown and "iB: lowest seen" in shown


def test_the_drawn_view_leaves_stages_that_took_long_as_lines(clock: list[float]) -> None:
    on = console(terminal=True)
    view = RichView(on)
    with view:
        view.progress("quantize", 0, 4)
        clock[0] = 9.0
        view.progress("quantize", 4, 4)
    assert "quantize: done in 9.0 s" in text_of(on)


def test_names_and_reasons_are_not_read_as_markup() -> None:
    on = console(terminal=False)
    PlainView(on).say("[bold]layers[0][/] :smile:")
    assert text_of(on) == "[bold]layers[0][/] :smile:\n"


def test_the_best_so_far_agrees_with_the_result() -> None:
    view = View()
    running = study(view, evaluations=30)
    result = running.run()
    budget = running.memory_budgets[0]
    comparison = result.comparison()
    best, rival = view.best.best(budget), view.best.best(budget, uniform=True)
    assert comparison is not None and comparison.uniform is not None and best is not None and rival is not None
    assert best[1] == pytest.approx(comparison.best.observed)
    assert rival[1] == pytest.approx(comparison.uniform.observed)
    assert view.best.gain(comparison.budget) == pytest.approx(1 - comparison.best.observed / rival[1])
    assert view.best.spent == pytest.approx(result.spent)
    assert view.best.failed == len(result.failures())


def test_a_resumed_study_begins_with_what_the_log_holds() -> None:
    first = study(View(), evaluations=12)
    first.run()
    again = BestSoFar.of(first)
    assert again.count == len(first.log)
    assert again.best(first.memory_budgets[0]) is not None and again.spent == pytest.approx(first.result().spent)


def test_in_a_notebook_rich_draws_if_it_can_and_else_lines_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = type("ZMQInteractiveShell", (), {})
    monkeypatch.setattr("builtins.get_ipython", shell, raising=False)
    monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: None)
    view = progress_view()
    assert isinstance(view, PlainView)
    view.say("a line")
    assert capsys.readouterr().out == "a line\n"
    monkeypatch.setattr(notebook.importlib.util, "find_spec", lambda name: object())
    assert isinstance(progress_view(), RichView)
