"""What is known of a plan: the evaluator, its results, and the sensitivities."""

from __future__ import annotations

from qra_search.evaluation.evaluator import (
    Evaluation,
    EvaluationFailed,
    Evaluator,
    ReloadFailed,
    RowCount,
    Tuned,
    check_evaluation,
)
from qra_search.evaluation.sensitivities import Sensitivities

__all__ = [
    "Evaluation",
    "EvaluationFailed",
    "Evaluator",
    "ReloadFailed",
    "RowCount",
    "Sensitivities",
    "Tuned",
    "check_evaluation",
]
