"""Discrete multi-objective search of bit-widths and LoRA ranks under exact memory budgets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Names are imported when they are first used: `qra --help` needs neither numpy nor pydantic.
_HOMES = {
    "evaluation": ("Evaluation", "EvaluationFailed", "Evaluator", "Prior"),
    "memory": ("BudgetTooSmall", "GroupwiseFormat", "MemoryModel", "StorageFormat"),
    "result": ("Candidate", "SearchResult"),
    "space": ("Group", "Linear", "Plan", "SearchSpace"),
    "strategies": ("Strategy", "StudyState"),
    "study": ("Callback", "Study", "search"),
    "trials": ("Proposal", "Trial", "TrialLog"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'qra_search' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"qra_search.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
