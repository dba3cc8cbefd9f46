"""Discrete multi-objective search of bit-widths and LoRA ranks under exact memory budgets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_search.app.run import Run
    from qra_search.app.search import search
    from qra_search.app.start import open_run, plan
    from qra_search.errors import BadInput, EvaluationFailed
    from qra_search.evaluator import Evaluator
    from qra_search.log.journal import TrialLog
    from qra_search.log.state import StudyState
    from qra_search.schemas import Evaluation, Group, Linear, Plan, Proposal, Sensitivities, Trial
    from qra_search.space.memory import BudgetTooSmall, GroupwiseFormat, Level, MemoryModel, StorageFormat
    from qra_search.space.space import SearchSpace
    from qra_search.strategies import Strategy
    from qra_search.study.result import EvaluatedPlan, SearchResult
    from qra_search.study.study import Callback, Study

# Names are imported when they are first used: `qra --help` needs neither numpy nor pydantic.
_EXPORTS = {
    "errors": ("BadInput", "EvaluationFailed"),
    "evaluator": ("Evaluator",),
    "log.state": ("StudyState",),
    "log.journal": ("TrialLog",),
    "schemas": ("Evaluation", "Group", "Linear", "Plan", "Proposal", "Sensitivities", "Trial"),
    "space.memory": ("BudgetTooSmall", "GroupwiseFormat", "Level", "MemoryModel", "StorageFormat"),
    "space.space": ("SearchSpace",),
    "strategies": ("Strategy",),
    "study.result": ("EvaluatedPlan", "SearchResult"),
    "study.study": ("Callback", "Study"),
    "app.run": ("Run",),
    "app.start": ("open_run", "plan"),
    "app.search": ("search",),
}
_MODULE_OF = {name: home for home, names in _EXPORTS.items() for name in names}
__all__ = [*_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'qra_search' has no attribute {name!r}")
    return getattr(import_module(f"qra_search.{_MODULE_OF[name]}"), name)
