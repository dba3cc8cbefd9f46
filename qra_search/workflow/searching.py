"""`search()`: a study run to its end, with its progress shown where somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qra_search.evaluation.evaluator import Evaluator
from qra_search.evaluation.protocols import ReportsProgress
from qra_search.report.notebook import in_notebook, progress_view
from qra_search.strategies import Strategy
from qra_search.study.callbacks import Callback
from qra_search.study.result import SearchResult
from qra_search.study.study import DEFAULT_STRATEGY, Study


def search(
    evaluator: Evaluator,
    strategy: str | Strategy = DEFAULT_STRATEGY,
    *,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> SearchResult:
    """Run a `Study` with these options and return its result.

    Args:
        progress: show how the search stands while it runs: in the cell of a notebook, a terminal, or as lines on
            stderr; None: in a notebook only.
    """
    if not (in_notebook() if progress is None else progress):
        return Study(evaluator, strategy=strategy, callbacks=callbacks, **options).run()
    with progress_view() as view:
        if isinstance(evaluator, ReportsProgress) and evaluator.progress is None:
            evaluator.progress = view.progress
        return Study(evaluator, strategy=strategy, callbacks=[view, *callbacks], **options).run()
