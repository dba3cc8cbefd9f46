"""What is known of a plan: the evaluator contract, its results, and the prior."""

from __future__ import annotations

from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, Evaluator, check_evaluation
from qra_search.evaluation.protocols import Estimates, ReportsProgress, ShowsUntuned, Tunes
from qra_search.evaluation.sensitivities import Sensitivities

__all__ = [
    "Estimates",
    "Evaluation",
    "EvaluationFailed",
    "Evaluator",
    "Sensitivities",
    "ReportsProgress",
    "ShowsUntuned",
    "Tunes",
    "check_evaluation",
]
