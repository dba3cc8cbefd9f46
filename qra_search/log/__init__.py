"""The trial log: every proposal and what became of it; the only state of a search."""

from __future__ import annotations

from qra_search.log.errors import LogMismatch
from qra_search.log.state import StudyState
from qra_search.log.trial import Proposal, Trial
from qra_search.log.trial_log import TrialLog

__all__ = ["LogMismatch", "Proposal", "StudyState", "Trial", "TrialLog"]
