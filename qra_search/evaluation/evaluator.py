"""What is known of a plan: the evaluator contract, its results, and the prior."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qra_search.errors import RunFailed
from qra_search.evaluation.sensitivities import Sensitivities
from qra_search.space.space import Plan, SearchSpace


@dataclass(frozen=True)
class Evaluation:
    """What came of one plan.

    Attributes:
        loss: held-out loss in nats, lower is better.
        memory_bytes: exact resident bytes of the plan.
        metrics: further figures by name.
        seconds: wall time of the evaluation.
        fidelity: share of a full evaluation that was spent, in (0, 1].
        seed: what initialisation, data order and dropout followed.
        cost: what is charged to the search, in full evaluations; None means `fidelity`.
    """

    loss: float
    memory_bytes: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    fidelity: float = 1.0
    seed: int = 0
    cost: float | None = None

    @property
    def charged(self) -> float:
        """Full evaluations that this one costs the search."""
        return self.fidelity if self.cost is None else self.cost


class EvaluationFailed(RunFailed):
    """The plan could not be evaluated; the message is the reason that the log keeps."""


class Evaluator(ABC):
    """Says what a plan is worth.

    A subclass sets `space` and implements `evaluate`. The same plan, fidelity and seed give the same loss.
    """

    space: SearchSpace
    fidelities: tuple[float, ...] = (1.0,)
    """Fidelities that `evaluate` accepts, ascending; the last is 1."""

    @abstractmethod
    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        """Evaluate one plan of the space.

        Raises:
            EvaluationFailed: it cannot be evaluated (out of memory, not finite); the search goes on.
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
    """The evaluation itself, or EvaluationFailed where its loss or its bytes cannot be true."""
    if not isinstance(evaluation, Evaluation):
        raise EvaluationFailed(f"the evaluator returned {type(evaluation).__name__}, an Evaluation is needed")
    if not math.isfinite(evaluation.loss):
        raise EvaluationFailed(f"loss is {evaluation.loss}")
    expected = space.memory_bytes(plan)
    if int(evaluation.memory_bytes) != expected:
        raise EvaluationFailed(
            f"the evaluator counted {evaluation.memory_bytes} bytes, the space counts {expected} for the same plan"
        )
    return evaluation
