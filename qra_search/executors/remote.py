"""An evaluator that lives in the workers of an executor: the study's own process never loads the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qra_search.allocate.sensitivities import Sensitivities
from qra_search.evaluation.evaluator import Evaluation, Evaluator, RowCount
from qra_search.executors.pool import WorkerExecutor
from qra_search.executors.work import Identity, identify, measure_sensitivities
from qra_search.log.trial import Proposal
from qra_search.space.space import Plan


class RemoteEvaluator(Evaluator):
    """Stands for the evaluators of a `ProcessExecutor` or `RayExecutor`; one worker is started to identify them."""

    def __init__(self, executor: WorkerExecutor):
        self._executor = executor
        self._identity: Identity = executor.ask(identify).result()
        self.space, self.fidelities = self._identity.space, self._identity.fidelities

    def evaluate(self, plan: Plan, *, fidelity: float = 1.0, seed: int = 0) -> Evaluation:
        return self._executor.submit(Proposal(plan, fidelity, seed)).result()

    def sensitivities(self) -> Sensitivities | None:
        sensitivities: Sensitivities | None = self._executor.ask(measure_sensitivities).result()
        return sensitivities

    def describe(self) -> dict[str, Any]:
        return dict(self._identity.description)

    def sensitivities_charge(self) -> float | None:
        return self._identity.sensitivities_charge

    def evaluation_seconds(self) -> float:
        return self._identity.evaluation_seconds

    def row_counts(self) -> Mapping[str, RowCount]:
        return self._identity.row_counts
