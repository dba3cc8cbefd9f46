"""What is known of a plan: the evaluator contract, its results, and the prior."""

from __future__ import annotations

from qra_search.evaluation.evaluator import Evaluation, EvaluationFailed, Evaluator, check_evaluation
from qra_search.evaluation.prior import Prior

__all__ = ["Evaluation", "EvaluationFailed", "Evaluator", "Prior", "check_evaluation"]
