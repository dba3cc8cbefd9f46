"""Who hears how a run goes: nobody, a function of the caller's, or the view that suits the place."""

from __future__ import annotations

from qra_search.errors import needed
from qra_search.evaluation.evaluator import Progress
from qra_search.report.notebook import in_notebook, progress_view
from qra_search.study.listener import Listener, ProgressListener

Heard = bool | Progress | Listener | None
"""What `progress` may be: a function of (stage, done, total), True for a view of bars and tables, False for nothing,
None for a view in a notebook and nothing elsewhere."""


def listener_for(progress: Heard) -> Listener:
    """The listener that a `progress` argument asks for.

    Raises:
        BadInput: it is none of what `Heard` names.
    """
    if isinstance(progress, Listener):
        return progress
    if progress is None or isinstance(progress, bool):
        return progress_view() if (in_notebook() if progress is None else progress) else Listener()
    if callable(progress):
        return ProgressListener(progress)
    raise needed("progress", progress, "True, False, or a function of a stage's name, the steps done and all its steps")
