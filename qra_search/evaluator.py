"""The evaluator: says what a plan is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from qra_search.errors import EvaluationFailed
from qra_search.schemas import Evaluation, Plan, Sensitivities
from qra_search.space.space import SearchSpace

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, the steps done, and the number of steps."""


class Evaluator(ABC):
    """Says what a plan is worth.

    A subclass sets `space` and implements `evaluate`. The same plan, fidelity and seed give the same loss. All other
    methods may be left out.

    Attributes:
        fidelities: that `evaluate` accepts, ascending; the last is 1.
        progress: called with what takes long; whoever runs a search sets it if it is None.
    """

    space: SearchSpace
    fidelities: tuple[float, ...] = (1.0,)
    progress: Progress | None = None

    @abstractmethod
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        """Evaluate one plan of the space.

        Raises:
            EvaluationFailed: it cannot be evaluated (out of memory, not finite); the search continues.
        """

    def sensitivities(self) -> Sensitivities | None:
        """Sensitivity of the groups, measured once and cached; None if there is none."""
        return None

    def describe(self) -> dict[str, Any]:
        """What identifies the evaluator (model, data, settings), as plain data. A log refuses another one."""
        return {}

    def close(self) -> None:
        """Free what the evaluator holds."""
        return None


def check_evaluation(evaluation: Evaluation, space: SearchSpace, plan: Plan) -> Evaluation:
    """The evaluation itself, or EvaluationFailed if it is none, or its bytes cannot be true."""
    if not isinstance(evaluation, Evaluation):
        raise EvaluationFailed(
            f"evaluate() must return an Evaluation, and returned a {type(evaluation).__name__}"
        )
    expected = space.memory_bytes(plan)
    if evaluation.memory_bytes != expected:
        raise EvaluationFailed(
            f"evaluate() reported memory_bytes={evaluation.memory_bytes} where space.memory_bytes(plan) is {expected}"
        )
    return evaluation
