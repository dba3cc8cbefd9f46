"""An evaluator that lives in the workers of an executor: the study's own process never loads the model."""

from __future__ import annotations

from collections.abc import Mapping
from operator import methodcaller
from typing import Any

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.evaluation.evaluator import Evaluation, Evaluator, RowCount
from qra_search.executors.pool import WorkerExecutor
from qra_search.executors.work import identify
from qra_search.log.trial import Proposal
from qra_search.space.space import Plan


class RemoteEvaluator(Evaluator):
    """Stands for the evaluators of a `ProcessExecutor` or `RayExecutor`; one worker is started to identify them."""

    def __init__(self, executor: WorkerExecutor):
        self._executor = executor
        self._identity: dict[str, Any] = executor.ask(identify).result()
        self.space, self.fidelities = self._identity["space"], self._identity["fidelities"]

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return self._executor.submit(Proposal(plan, fidelity, seed)).result()

    def sensitivities(self) -> Sensitivities | None:
        sensitivities: Sensitivities | None = self._executor.ask(methodcaller("sensitivities")).result()
        return sensitivities

    def describe(self) -> dict[str, Any]:
        return dict(self._identity["describe"])

    def sensitivities_charge(self) -> float | None:
        charge: float | None = self._identity["sensitivities_charge"]
        return charge

    def evaluation_seconds(self) -> float:
        return float(self._identity["evaluation_seconds"])

    def row_counts(self) -> Mapping[str, RowCount]:
        counts: Mapping[str, RowCount] = self._identity["row_counts"]
        return counts
