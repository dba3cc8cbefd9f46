"""The live view: quiet, as lines or as bars; what it says of stages, trials, the best plans and the time left."""

from __future__ import annotations

import io

import pytest
from report_runs import Bits, Guessing, evil_space
from rich.console import Console

from qra_search import Study
from qra_search.app.report import live
from qra_search.app.report.live import ConsoleView, make_listener
from qra_search.study.study import Listener


def console(*, terminal: bool = False, **environment: str) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=110, _environ={"TERM": "xterm", **environment}
    )


def lines(on: Console) -> list[str]:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue().splitlines()


def study(listener: Listener, evaluations: float = 14) -> Study:
    return Study(
        Bits(evil_space()),
        strategy=Guessing(),
        evaluations=evaluations,
        memory_budget="uniform3r4",
        callbacks=(listener,),
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time as the view sees it, in a list that a test sets."""
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    return now


def test_bars_are_drawn_in_a_terminal_that_can_redraw_and_nothing_is_shown_if_quiet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for on, draws in (
        (console(terminal=True), True),
        (console(), False),
        (console(terminal=True, TERM="dumb"), False),
    ):
        assert ConsoleView(on).can_draw is draws
    for quiet in (False, True):
        with make_listener(not quiet) as view:
            view.say("words")
            view.progress("quantize", 1, 2)
            study(view).run()
        shown = capsys.readouterr()
        assert shown.out == "" and ("words" in shown.err) is not quiet and bool(shown.err) is not quiet


@pytest.mark.parametrize(
    ("ticks", "total", "expected"),
    [
        (
            [(n, n / 2) for n in range(101)],
            100,
            [
                "0 of 100",
                "30 of 100, about 35 s left",
                "60 of 100, about 20 s left",
                "90 of 100, about 5.0 s left",
                "done in 50 s",
            ],
        ),
        (
            [(0, 0.0), (1, 60.0), (2, 61.0), (30, 89.0)],
            200,
            ["0 of 200", "1 of 200", "30 of 200, about 2 min 50 s left"],
        ),
    ],
    ids=["even", "slow first step"],
)
def test_a_stage_is_named_at_once_with_its_pace_if_it_takes_long(
    clock: list[float], ticks: list[tuple[int, float]], total: int, expected: list[str]
) -> None:
    """First steps may include work that is done once: the pace leaves out one, and is told after a twentieth."""
    on = console()
    view = ConsoleView(on)
    for done, clock[0] in ticks:
        view.progress("quantize", done, total)
    assert lines(on) == [f"quantize: {text}" for text in expected]


def test_lines_of_trials_give_the_loss_and_its_prediction() -> None:
    on = console()
    running = study(ConsoleView(on))
    running.run()
    assert sum(line.startswith("[") for line in lines(on)) == len(running.log)
    assert any("predicted 2.0000" in line for line in lines(on))


def test_a_terminal_has_the_lines_of_trials_above_bars_of_the_search_and_the_stage(
    clock: list[float],
) -> None:
    on = console(terminal=True)
    view = ConsoleView(on)
    running = study(view)
    running.run()
    view.progress("evaluate", 3, 12)
    assert [task.description for task in view.bars.tasks] == ["evaluations", "evaluate"]
    assert view.bars.tasks[0].completed == pytest.approx(running.state.spent)
    assert sum(line.startswith("[") for line in lines(on)) == len(running.log)
