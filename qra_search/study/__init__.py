"""The loop of a search, and what it found."""

from __future__ import annotations

from qra_search.study.evaluated_plan import Comparison, EvaluatedPlan
from qra_search.study.result import SearchResult
from qra_search.study.study import Callback, Study, StudyFailed

__all__ = ["Callback", "EvaluatedPlan", "Comparison", "SearchResult", "Study", "StudyFailed"]
