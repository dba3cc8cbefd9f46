"""`search()`: a study run to its end, with its progress shown if somebody looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qra_search.config import DEFAULT_EVALUATIONS, DEFAULT_STRATEGY
from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.protocols import ReportsProgress
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.executors.base import Executor
from qra_search.log.trial_log import MEMORY, TrialLog
from qra_search.report.terminal.live import View, in_notebook, progress_view
from qra_search.strategies import Strategy
from qra_search.study.result import SearchResult
from qra_search.study.study import Callback, Study


def search(
    evaluator: Evaluator,
    strategy: str | Strategy | type[Strategy] = DEFAULT_STRATEGY,
    *,
    options: Mapping[str, Any] | None = None,
    evaluations: float = DEFAULT_EVALUATIONS,
    memory_budget: int | str | Sequence[int | str] | None = None,
    seed: int = 0,
    log: str | Path | TrialLog = MEMORY,
    executor: Executor | None = None,
    batch: int | None = None,
    sensitivities: Sensitivities | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> SearchResult:
    """Run a `Study` and return its result.

    Args:
        evaluator: says what a plan is worth.
        strategy: name of an installed strategy, or a `Strategy`.
        options: of the strategy, if it is given by name or class, such as `{"population": 8}` (see `qra strategies`);
            each is held against the type that the strategy declares.
        evaluations: full evaluations that may be spent, the prior's cost included.
        memory_budget: bytes (or a text such as `108MiB`, `3.5bpw`, `75%`), several, or None for the whole front.
        seed: all randomness of the search follows from it.
        log: path of the trial log, or a `TrialLog`; an existing one is resumed. Default: nothing is kept.
        executor: where evaluations run; default: in this process, one after the other.
        batch: so many proposals at a time, all awaited; None: a free worker gets the next at once.
        prior: taken in place of the evaluator's own.
        progress: show how the search stands while it runs: in the cell of a notebook, a terminal, or as lines on
            stderr; None: in a notebook only.
        callbacks: hear of every event.

    Raises:
        BadInput: an argument that cannot be used; nothing was spent.
        StudyFailed: the search cannot go on.
    """

    def study(*views: View) -> Study:
        return Study(
            evaluator, strategy=strategy, options=options, evaluations=evaluations, memory_budget=memory_budget,
            seed=seed, log=log, executor=executor, batch=batch, sensitivities=sensitivities,
            callbacks=[*views, *callbacks],
        )  # fmt: skip

    if not (in_notebook() if progress is None else progress):
        return study().run()
    with progress_view() as view:
        if isinstance(evaluator, ReportsProgress) and evaluator.progress is None:
            evaluator.progress = view.progress
        return study(view).run()
