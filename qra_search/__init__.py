"""Discrete multi-objective search of bit-widths and LoRA ranks under exact memory budgets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qra_search.allocate.sensitivities import Sensitivities as Sensitivities
    from qra_search.errors import BadInput as BadInput
    from qra_search.evaluation.evaluator import Evaluation as Evaluation
    from qra_search.evaluation.evaluator import EvaluationFailed as EvaluationFailed
    from qra_search.evaluation.evaluator import Evaluator as Evaluator
    from qra_search.log.state import StudyState as StudyState
    from qra_search.log.trial import Proposal as Proposal
    from qra_search.log.trial import Trial as Trial
    from qra_search.log.trial_log import TrialLog as TrialLog
    from qra_search.space.levels import Level as Level
    from qra_search.space.memory import BudgetTooSmall as BudgetTooSmall
    from qra_search.space.memory import GroupwiseFormat as GroupwiseFormat
    from qra_search.space.memory import MemoryModel as MemoryModel
    from qra_search.space.memory import StorageFormat as StorageFormat
    from qra_search.space.plan import Group as Group
    from qra_search.space.plan import Linear as Linear
    from qra_search.space.plan import Plan as Plan
    from qra_search.space.space import SearchSpace as SearchSpace
    from qra_search.strategies import Strategy as Strategy
    from qra_search.study.candidates import EvaluatedPlan as EvaluatedPlan
    from qra_search.study.result import SearchResult as SearchResult
    from qra_search.study.study import Callback as Callback
    from qra_search.study.study import Study as Study
    from qra_search.workflow.run import Run as Run
    from qra_search.workflow.search import search as search
    from qra_search.workflow.start import open_run as open_run
    from qra_search.workflow.start import plan as plan

# Names are imported when they are first used: `qra --help` needs neither numpy nor pydantic.
_HOMES = {
    "errors": ("BadInput",),
    "evaluation.evaluator": ("Evaluation", "EvaluationFailed", "Evaluator"),
    "allocate.sensitivities": ("Sensitivities",),
    "log.state": ("StudyState",),
    "log.trial": ("Proposal", "Trial"),
    "log.trial_log": ("TrialLog",),
    "space.levels": ("Level",),
    "space.memory": ("BudgetTooSmall", "GroupwiseFormat", "MemoryModel", "StorageFormat"),
    "space.plan": ("Group", "Linear", "Plan"),
    "space.space": ("SearchSpace",),
    "strategies": ("Strategy",),
    "study.candidates": ("EvaluatedPlan",),
    "study.result": ("SearchResult",),
    "study.study": ("Callback", "Study"),
    "workflow.run": ("Run",),
    "workflow.search": ("search",),
    "workflow.start": ("open_run", "plan"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'qra_search' has no attribute {name!r}")
    value = getattr(import_module(f"qra_search.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
