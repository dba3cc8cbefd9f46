"""Discrete multi-objective search of bit-widths and LoRA ranks under exact memory budgets."""

from qra_search.evaluation import Evaluation, EvaluationFailed, Evaluator, Prior
from qra_search.memory import BudgetTooSmall, GroupwiseFormat, MemoryModel, StorageFormat
from qra_search.result import Candidate, SearchResult
from qra_search.space import Group, Linear, Plan, SearchSpace
from qra_search.strategies import Strategy, StudyState
from qra_search.study import Callback, Study, search
from qra_search.trials import Proposal, Trial, TrialLog

__all__ = [
    "BudgetTooSmall",
    "Callback",
    "Candidate",
    "Evaluation",
    "EvaluationFailed",
    "Evaluator",
    "Group",
    "GroupwiseFormat",
    "Linear",
    "MemoryModel",
    "Plan",
    "Prior",
    "Proposal",
    "SearchResult",
    "SearchSpace",
    "StorageFormat",
    "Strategy",
    "Study",
    "StudyState",
    "Trial",
    "TrialLog",
    "search",
]
