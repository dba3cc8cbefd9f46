"""The loop of a search, and what it found."""

from __future__ import annotations

from qra_search.study.candidate import Candidate, Comparison
from qra_search.study.result import SearchResult
from qra_search.study.study import Callback, Study, StudyFailed

__all__ = ["Callback", "Candidate", "Comparison", "SearchResult", "Study", "StudyFailed"]
